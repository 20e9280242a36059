"""Axis 3, frequency: a clock for every member, so that whoever binds the step is raised and whoever waits is lowered.

Time t(f) = t0 ((1 - a) + a f0 / f), power P(f) = Ps + Pd (f / f0) (V(f) / V0)^2. As in ElasWave
(https://arxiv.org/abs/2510.00606) clocks are set once per plan; lowering what is not critical is after Perseus
(https://arxiv.org/abs/2312.06902), which does it per instruction.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from elaswave.config import Dvfs

EPSILON = 1e-9
"""Relative difference of times that are taken for equal."""

LOWERED = (1.0, 0.75, 0.5, 0.25)
"""How far to lower who cannot be lowered to the end, as shares of the way."""
TRIALS_MAX = 96
"""Steps that are simulated to find out who can be lowered."""

StepTime = Callable[[Sequence[float]], float]
"""Seconds of a step when each member takes so many times as long as at its nominal clock; never falls as they rise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockProfile:
    """How time and power of a device depend on its clock; see `config.Dvfs` for the symbols.

    Attributes:
        nominal_mhz: f0.
        compute_share: a.
        static_w: Ps.
        dynamic_w: Pd.
        knee: clock below which the voltage is constant, as a share of f0.
        knee_voltage: voltage there, as a share of V0.
    """

    nominal_mhz: int
    compute_share: float = 0.9
    static_w: float = 100.0
    dynamic_w: float = 300.0
    knee: float = 0.625
    knee_voltage: float = 0.7

    def slowdown(self, mhz: float) -> float:
        """Time at a clock, in times at the nominal one."""
        return 1.0 - self.compute_share + self.compute_share * self.nominal_mhz / mhz

    def voltage(self, mhz: float) -> float:
        """Voltage at a clock, as a share of that at the nominal one."""
        slope = (1.0 - self.knee_voltage) / (1.0 - self.knee)
        return max(self.knee_voltage, 1.0 + slope * (mhz / self.nominal_mhz - 1.0))

    def power_w(self, mhz: float) -> float:
        """Power of a device that computes; one that waits takes `static_w`."""
        return self.static_w + self.dynamic_w * mhz / self.nominal_mhz * self.voltage(mhz) ** 2

    def energy_j(self, mhz: float, load_s: float, step_s: float) -> float:
        """Energy of a step in which a device computes what takes `load_s` at the nominal clock, and waits for the rest.

        Args:
            mhz: its clock.
            load_s: seconds of work at the nominal clock.
            step_s: seconds of the step.
        """
        busy_s = load_s * self.slowdown(mhz)
        return (self.power_w(mhz) - self.static_w) * busy_s + self.static_w * max(step_s, busy_s)


def profile_of(settings: Dvfs, nominal_mhz: int) -> ClockProfile:
    """The profile that the settings describe, of a device whose nominal clock is this unless they name another."""
    return ClockProfile(
        nominal_mhz=settings.nominal_mhz or nominal_mhz,
        compute_share=settings.compute_share,
        static_w=settings.static_w,
        dynamic_w=settings.dynamic_w,
        knee=settings.knee,
        knee_voltage=settings.knee_voltage,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What clocks are chosen from.

    Attributes:
        loads_s: per member seconds of work per step at the nominal clock.
        counts: how many members each of them stands for.
        range_mhz: clocks that can be set, ascending.
        profile: of the devices.
        boost: how far above the nominal clock a member may go, as a factor.
        tolerance: how much longer a step may take, as a share, so that more of those that wait can be lowered.
        step_s: how long a step takes; by default as long as its slowest member.
        applied: clocks that members have whatever is asked of them; None where it is free.
    """

    loads_s: tuple[float, ...]
    counts: tuple[int, ...]
    range_mhz: tuple[int, ...]
    profile: ClockProfile
    boost: float
    tolerance: float
    step_s: StepTime | None = field(default=None, compare=False)
    applied: tuple[int | None, ...]

    def step_of(self, clocks: Sequence[int]) -> float:
        """Seconds of a step at these clocks."""
        slowdowns = [self.profile.slowdown(mhz) for mhz in clocks]
        if self.step_s is not None:
            return self.step_s(slowdowns)
        return max(load * slowdown for load, slowdown in zip(self.loads_s, slowdowns, strict=True))

    def energy_of(self, clocks: Sequence[int], step_s: float) -> float:
        """Joules of a step of all members."""
        rows = zip(clocks, self.loads_s, self.counts, strict=True)
        return sum(self.profile.energy_j(mhz, load, step_s) * count for mhz, load, count in rows)

    def at_most(self, mhz: float) -> int:
        """The highest clock that can be set and is not above; the lowest when all are."""
        return self.range_mhz[max(bisect_right(self.range_mhz, mhz) - 1, 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """A clock for every member, and what comes of it.

    Attributes:
        mhz: per member.
        step_s: seconds of a step, as predicted.
        energy_j: of all members in a step.
        before: (seconds, joules) of a step in which nothing is set.
        reason: one line for people.
        request: what they were chosen from.
    """

    mhz: tuple[int, ...]
    step_s: float
    energy_j: float
    before: tuple[float, float]
    reason: str
    request: Request


def choose(
    loads_s: Sequence[float],
    range_mhz: Sequence[int],
    profile: ClockProfile,
    *,
    boost: float = 1.0,
    tolerance: float = 0.0,
    counts: Sequence[int] | None = None,
    step_s: StepTime | None = None,
) -> Clocks:
    """Raise whoever binds the step as far as even shares would carry it, and lower those that wait at equal step time.

    Nobody is raised beyond `boost`, nor further than to the pace of a plan without any imbalance: what is balanced
    keeps its nominal clock. Raising is given up where a step does not end earlier by it.

    Args:
        loads_s: per member seconds of work per step at the nominal clock; zero for one without work.
        range_mhz: clocks that can be set.
        profile: of the devices.
        boost: how far above the nominal clock, as a factor; 1 only lowers.
        tolerance: how much longer a step may take by lowering, as a share: where a pipeline has to fill, every member
            delays it by its first micro-batch, so that hardly anyone can be lowered for nothing.
        counts: how many members each load stands for; one each by default.
        step_s: how long a step takes; by default as long as its slowest member, which leaves out that a pipeline also
            has to fill.

    Raises:
        ValueError: no load, no clock, or one that is negative or not positive.
    """
    numbers = tuple(counts) if counts is not None else (1,) * len(loads_s)
    if not loads_s or min(loads_s) < 0 or len(numbers) != len(loads_s) or min(numbers) < 0:
        raise ValueError(f"loads_s = {tuple(loads_s)}, counts = {numbers}: give one each that is not negative")
    if not range_mhz or min(range_mhz) <= 0 or boost < 1 or tolerance < 0:
        told = f"range_mhz = {tuple(range_mhz)}, boost = {boost}, tolerance = {tolerance}"
        raise ValueError(f"{told}: give positive clocks, a boost of 1 or more, and a tolerance of 0 or more")
    request = Request(
        loads_s=tuple(loads_s),
        counts=numbers,
        range_mhz=tuple(sorted(set(range_mhz))),
        profile=profile,
        boost=boost,
        tolerance=tolerance,
        step_s=step_s,
        applied=(None,) * len(loads_s),
    )
    return _solve(request)


def recost(plan: Clocks, applied: Sequence[int]) -> Clocks:
    """Choose again when a member has another clock than was asked of it; the others adapt to those that cannot.

    Call it again with what was applied of the new clocks: each round settles one member at least.

    Args:
        plan: what was asked.
        applied: per member the clock that it has.

    Raises:
        ValueError: not as many as members, or one is not positive.
    """
    if len(applied) != len(plan.mhz) or min(applied) <= 0:
        raise ValueError(f"applied = {tuple(applied)}: give a positive clock for each of {len(plan.mhz)} members")
    rows = zip(plan.request.applied, plan.mhz, applied, strict=True)
    settled = tuple(have if known is not None or have != asked else None for known, asked, have in rows)
    return _solve(replace(plan.request, applied=settled))


def settle(plan: Clocks, apply: Callable[[tuple[int, ...]], Sequence[int]]) -> Clocks:
    """Ask for the clocks, and choose again as long as other ones are applied.

    Args:
        plan: what to ask for first.
        apply: asks every member for its clock, and returns those that are applied.

    Returns:
        Clocks that all members have; those that still differ after a round for each member as they are.
    """
    for _ in range(len(plan.mhz) + 1):
        applied = tuple(apply(plan.mhz))
        if applied == plan.mhz:
            break
        plan = recost(plan, applied)
    return plan


def _solve(request: Request) -> Clocks:
    nominal = [request.at_most(request.profile.nominal_mhz) if own is None else own for own in request.applied]
    untouched = [request.at_most(request.profile.nominal_mhz)] * len(nominal)
    without_s = request.step_of(untouched)
    before = (without_s, request.energy_of(untouched, without_s))
    raised, pace_s = _raise(request, nominal)
    if raised != nominal and request.step_of(raised) > request.step_of(nominal) * (1 - EPSILON):
        raised = nominal
        pace_s = max(_times(request, nominal))
    mhz = _lower(request, raised, pace_s)
    step_s = request.step_of(mhz)
    energy_j = request.energy_of(mhz, step_s)
    return Clocks(
        mhz=tuple(mhz),
        step_s=step_s,
        energy_j=energy_j,
        before=before,
        reason=_reason(request, mhz, before, (step_s, energy_j)),
        request=request,
    )


def _times(request: Request, clocks: Sequence[int]) -> list[float]:
    return [load * request.profile.slowdown(mhz) for load, mhz in zip(request.loads_s, clocks, strict=True)]


def _raise(request: Request, nominal: Sequence[int]) -> tuple[list[int], float]:
    """Clocks with those raised that bind, and the seconds in which every member is then done."""
    top = request.at_most(request.profile.nominal_mhz * request.boost)
    fastest = [top if own is None else own for own in request.applied]
    times = _times(request, nominal)
    mean_s = sum(time * count for time, count in zip(times, request.counts, strict=True)) / max(sum(request.counts), 1)
    pace_s = max(mean_s, *_times(request, fastest))
    rows = zip(request.loads_s, nominal, times, request.applied, strict=True)
    return [
        mhz if time <= pace_s or own is not None else max(mhz, _lowest(request, load, pace_s, top))
        for load, mhz, time, own in rows
    ], pace_s


def _lower(request: Request, clocks: Sequence[int], pace_s: float) -> list[int]:
    """The lowest clocks at which a step takes no longer than is tolerated: of all members, else of whoever can be.

    Those with most to save come first, all that are alike at once, and one by one where that fails.
    """
    goal_s = request.step_of(clocks) * (1 + EPSILON + request.tolerance)
    rows = list(zip(request.loads_s, clocks, request.applied, strict=True))
    lowest = [mhz if own is not None else _lowest(request, load, pace_s, mhz) for load, mhz, own in rows]
    if request.step_of(lowest) <= goal_s:
        return lowest
    alike: dict[tuple[float, int], list[int]] = {}
    for member, (load, mhz, _) in enumerate(rows):
        if lowest[member] < mhz:
            alike.setdefault((load * (mhz - lowest[member]), mhz), []).append(member)
    found, trials = list(clocks), 0
    groups = [alike[key] for key in sorted(alike, key=lambda key: (-key[0] * len(alike[key]), key))]
    while groups and trials < TRIALS_MAX:
        group = groups.pop(0)
        for share in LOWERED:
            trials += 1
            tried = list(found)
            for member in group:
                tried[member] = request.at_most(share * lowest[member] + (1 - share) * clocks[member])
            if request.step_of(tried) <= goal_s:
                found = tried
                break
        else:
            groups += [[member] for member in group] if len(group) > 1 else []
    return found


def _lowest(request: Request, load_s: float, deadline_s: float, top: int) -> int:
    """The lowest clock up to `top` at which the work is done in time; `top` if it is at none.

    Lower is always cheaper in equal time: static power is drawn anyway, and the other energy falls with the clock.
    """
    limit = deadline_s * (1 + EPSILON)
    allowed = request.range_mhz[: bisect_right(request.range_mhz, top)]
    place = bisect_left(allowed, True, key=lambda mhz: load_s * request.profile.slowdown(mhz) <= limit)
    return allowed[place] if place < len(allowed) else top


def _reason(request: Request, mhz: Sequence[int], before: tuple[float, float], after: tuple[float, float]) -> str:
    """What is raised and lowered, and what it brings, such as `2 raised to 1100 MHz, 4 lowered to 820-910 MHz: ...`."""
    usual = request.at_most(request.profile.nominal_mhz)
    moved = {
        "raised": [(clock, count) for clock, count in zip(mhz, request.counts, strict=True) if clock > usual and count],
        "lowered": [
            (clock, count) for clock, count in zip(mhz, request.counts, strict=True) if clock < usual and count
        ],
    }
    parts = [
        f"{sum(count for _, count in rows)} {word} to {_span([clock for clock, _ in rows])} MHz"
        for word, rows in moved.items()
        if rows
    ]
    if other := sum(own is not None for own in request.applied):
        parts.append(f"{other} at clocks of their own")
    if not parts:
        return f"all stay at {usual} MHz"
    changes = [f"{name} {_percent(new, old)}" for name, new, old in zip(("time", "energy"), after, before, strict=True)]
    return f"{', '.join(parts)}: step {', '.join(changes)}"


def _span(clocks: Sequence[int]) -> str:
    low, high = min(clocks), max(clocks)
    return str(low) if low == high else f"{low}-{high}"


def _percent(new: float, old: float) -> str:
    return f"{100 * (new / old - 1) if old else 0.0:+.1f} %"
