"""The plan of very many workers, as arrays: the same decisions as `scheduler.make_plan`, without an object for each.

Nothing here grows with ranks times layers or with micro-batches. What each micro-batch and each member does follows
from a few numbers in closed form, so every worker can look up its own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from elaswave.planner.dataflow import way_through
from elaswave.planner.frequency import ClockProfile, Clocks, choose
from elaswave.planner.graph import cut, fractions
from elaswave.planner.profile import Profile

PASSES = 3
"""Forward, backward for inputs and backward for weights take a layer's cost each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cuts:
    """The cuts of all micro-batches of a step: few distinct ones, each for a run of places in the order of dealing.

    Attributes:
        bounds: (K, C + 1) int64, of C chunks; see `graph`.
        begins: (K + 1,) int64, the first place with each cut, and behind the last one the number of micro-batches.
    """

    bounds: np.ndarray
    begins: np.ndarray

    @property
    def num_micro_batches(self) -> int:
        """Of a step."""
        return int(self.begins[-1])

    def place(self, micro_batch: int) -> int:
        """Where a micro-batch comes in the order of dealing: by id, or by reversed binary digits if cuts differ."""
        return micro_batch if len(self.bounds) == 1 else reversed_place(micro_batch, self.num_micro_batches)

    def of(self, place: int) -> tuple[int, ...]:
        """The bounds of the micro-batch at a place."""
        return tuple(self.bounds[int(np.searchsorted(self.begins, place, side="right")) - 1].tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class ScalePlan:
    """Who does what.

    The micro-batch at place q is computed, in each stage, by the member number q modulo the members of the stage.

    Attributes:
        members: per stage the ranks of its members, ascending int64; empty where nobody is left.
        cuts: of all micro-batches.
        loads: (P,) of the busiest member of each stage, in units of the layers' costs; 0 where nobody is left.
        buckets: units and the stages whose members hold them.
        clocks: one for each stage; None where clocks are left alone.
        reason: one line for people.
    """

    members: tuple[np.ndarray, ...]
    cuts: Cuts
    loads: np.ndarray
    buckets: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    clocks: Clocks | None
    reason: str

    @cached_property
    def num_members(self) -> int:
        """Over all stages."""
        return sum(map(len, self.members))

    def legs(self, micro_batch: int) -> tuple[tuple[int, int, int], ...]:
        """The way of a micro-batch through the layers: (rank, start, stop), in order."""
        place = self.cuts.place(micro_batch)
        way = way_through(self.cuts.of(place), len(self.members))
        return tuple(
            (int(self.members[stage][place % len(self.members[stage])]), start, stop) for stage, start, stop in way
        )

    def places(self, rank: int) -> range:
        """The places in the order of dealing whose micro-batches a rank computes.

        Raises:
            ValueError: it is not a member.
        """
        mine = self.members[rank % len(self.members)]
        number = int(np.searchsorted(mine, rank))
        if number == len(mine) or mine[number] != rank:
            raise ValueError(f"rank {rank} is not a member")
        return range(number, self.cuts.num_micro_batches, len(mine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dvfs:
    """What clocks are chosen from; see `frequency.choose`."""

    range_mhz: tuple[int, ...]
    profile: ClockProfile
    boost: float = 1.1


def plan_at_scale(
    alive: np.ndarray,
    num_stages: int,
    profile: Profile,
    num_micro_batches: int,
    *,
    virtual_stages: int = 1,
    use_fluid: bool = True,
    dvfs: Dvfs | None = None,
) -> ScalePlan:
    """Plan for whoever is left.

    Cuts that differ per micro-batch are taken where the busiest member then has less to do; `make_plan` simulates the
    pipeline to decide that, which nobody can for a million members in milliseconds.

    Args:
        alive: (ranks,) bool, whether each rank is there; rank r belongs to stage r % P.
        num_stages: P.
        profile: of the model.
        num_micro_batches: of a step.
        virtual_stages: chunks of each stage.
        use_fluid: allow cuts that differ per micro-batch.
        dvfs: choose clocks too, one for each stage.

    Raises:
        ConfigError: nobody is left.
    """
    members = tuple(np.flatnonzero(alive[stage::num_stages]) * num_stages + stage for stage in range(num_stages))
    counts = np.array([len(ranks) for ranks in members], np.int64)
    capacities = counts.tolist() * virtual_stages
    cuts = Cuts(
        bounds=np.array([cut(profile.costs, capacities)], np.int64), begins=np.array([0, num_micro_batches], np.int64)
    )
    loads, kind = loads_of(cuts, profile.costs, counts), "whole cuts"
    if use_fluid and num_stages > 1:
        other = fluid_cuts(profile.costs, capacities, num_micro_batches)
        other_loads = loads_of(other, profile.costs, counts)
        if other_loads.max() < loads.max() and bool(((other_loads > 0) == (counts > 0)).all()):
            cuts, loads, kind = other, other_loads, "fluid cuts"
    clocks = None
    if dvfs is not None:
        clocks = choose(loads.tolist(), dvfs.range_mhz, dvfs.profile, boost=dvfs.boost, counts=counts.tolist())
    share = bound(profile.costs, int(counts.sum()), num_micro_batches) / float(loads.max())
    return ScalePlan(
        members=members,
        cuts=cuts,
        loads=loads,
        buckets=_buckets(profile, cuts, num_stages),
        clocks=clocks,
        reason=f"{counts.sum()} of {len(alive)} workers, stages of {counts.min()}-{counts.max()}, {kind}: "
        f"{100 * share:.1f} % of the bound" + (f"; clocks: {clocks.reason}" if clocks is not None else ""),
    )


def fluid_cuts(costs: Sequence[float], capacities: Sequence[float], num_micro_batches: int) -> Cuts:
    """The cuts of `graph.fluid`, equal ones together."""
    low, num_high = fractions(costs, capacities, num_micro_batches)
    begins = np.array(sorted({0, *num_high.tolist()} - {num_micro_batches}), np.int64)
    return Cuts(bounds=low + (begins[:, None] < num_high), begins=np.append(begins, num_micro_batches))


def loads_of(cuts: Cuts, costs: Sequence[float], counts: np.ndarray) -> np.ndarray:
    """What the busiest member of each stage has to do in a step, (P,), in units of the costs.

    Of the places below x, a member number j of n has x // n, and one more if j < x % n. So the work of a stage's
    members changes only at those remainders of the places where the cuts change.

    Args:
        cuts: of all micro-batches.
        costs: of each layer.
        counts: (P,) members of each stage; one without has no layers.
    """
    work = PASSES * _work(cuts, costs, len(counts))  # (K, P)
    whole, rest = np.divmod(cuts.begins[:, None], np.maximum(counts, 1))  # (K + 1, P)
    even = (work * np.diff(whole, axis=0)).sum(axis=0)
    more = rest[None, :, :] > rest[:, None, :]  # [member at a remainder, place, stage]
    extra = np.diff(more.astype(np.int64), axis=1)  # (K + 1, K, P)
    return (even + np.einsum("jkp,kp->jp", extra, work).max(axis=0)) * (counts > 0)


def bound(costs: Sequence[float], num_members: int, num_micro_batches: int) -> float:
    """What every member would have to do if work could be shared out evenly, in units of the costs."""
    return PASSES * sum(costs) * num_micro_batches / num_members


def drop_replicas(alive: np.ndarray, num_stages: int, costs: Sequence[float], num_micro_batches: int) -> float:
    """What the busiest member has to do when every pipeline that lacks a worker stands still; infinite without any.

    As torchft does with replica groups (https://github.com/pytorch/torchft).
    """
    pipelines = int(alive[: len(alive) // num_stages * num_stages].reshape(-1, num_stages).all(axis=1).sum())
    if not pipelines:
        return float("inf")
    cuts = Cuts(
        bounds=np.array([cut(costs, [1.0] * num_stages)], np.int64), begins=np.array([0, num_micro_batches], np.int64)
    )
    return float(loads_of(cuts, costs, np.full(num_stages, pipelines, np.int64)).max())


def reversed_place(number: int, count: int) -> int:
    """The place of a number among 0 .. count - 1 when they are ordered by their binary digits, read backwards.

    Before it are those that agree with it in the lower digits and have a 0 where it has a 1, for each such digit.
    """
    place = 0
    for digit in range(number.bit_length()):
        if number >> digit & 1:
            low = number & ((1 << digit) - 1)
            place += (count - low + (2 << digit) - 1) // (2 << digit)
    return place


def _work(cuts: Cuts, costs: Sequence[float], num_stages: int) -> np.ndarray:
    """The costs of the layers of each stage under each cut, (K, P)."""
    total = np.array(list(accumulate(costs, initial=0.0)))
    return np.diff(total[cuts.bounds], axis=1).reshape(len(cuts.bounds), -1, num_stages).sum(axis=1)


def _buckets(profile: Profile, cuts: Cuts, num_stages: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Units by the stages that hold them, in order of the first unit."""
    edges = np.zeros((num_stages, profile.num_layers + 1), np.int64)
    for chunk, bounds in enumerate(pairwise(cuts.bounds.T)):
        np.add.at(edges[chunk % num_stages], bounds[0], 1)
        np.add.at(edges[chunk % num_stages], bounds[1], -1)
    held = edges.cumsum(axis=1)[:, :-1] > 0  # (P, L)
    found: dict[tuple[int, ...], list[int]] = {}
    for unit, users in enumerate(profile.users):
        stages = np.flatnonzero(held[:, list(users)].any(axis=1))
        found.setdefault(tuple(stages.tolist()), []).append(unit)
    return tuple((tuple(units), stages) for stages, units in found.items())
