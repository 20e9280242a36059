"""What the planner knows beyond a model's static profile: measured times of layers, slow members, links, memory.

A fail-slow member is one with a lower capacity. What is measured is kept for a few steps, and medians are taken, so
that one odd measurement changes nothing. Times are per unit of work, so that sequences of unequal length raise no
false alarm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import Literal

from elaswave.planner.profile import Profile

KINDS = ("F", "I", "W")
Kind = Literal["F", "I", "W"]
"""Forward, backward for inputs, backward for weights."""

WINDOW = 64
"""Measurements that are kept of a layer or a link."""
STEPS = 3
"""Steps in a row in which a member must be slow to be called so, or as fast as others to be cleared of it."""
SLOW = 1.2
"""Times the others' time from which a member is slow ..."""
CLEARED = 1.1
"""... and below which it is not any more."""
SMALL_BYTES = 1 << 16
"""Messages up to here tell a link's latency, larger ones its bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One operation of a member.

    Attributes:
        worker_id: who has done it.
        kind: `F`, `I` or `W`.
        start, stop: layers [start, stop).
        work: what its time is proportional to, such as tokens; what a micro-batch has of it may differ.
        seconds: it took.
    """

    worker_id: str
    kind: Kind
    start: int
    stop: int
    work: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message between two members: how many bytes, and how long it took."""

    source: str
    destination: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What is thought of a member's speed.

    Attributes:
        slowdown: its time over that of the others, in the median of the last steps.
        recent: of each of the last steps.
        slow: it is taken for slow.
    """

    slowdown: float = 1.0
    recent: tuple[float, ...] = ()
    slow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Everything that is known of what things cost here; a value, equal for equal measurements in equal order.

    Attributes:
        profile: what is known without measuring.
        paces: per kind and layer the last measured seconds per work, of members at ordinary speed.
        suspicions: by worker id.
        links: by (source, destination) the last messages as (bytes, seconds).
        memory_bytes: that each layer takes where it is held; empty when that does not matter.
        limits_bytes: by worker id what it can hold.
    """

    profile: Profile
    paces: Mapping[tuple[Kind, int], tuple[float, ...]] = field(default_factory=dict)
    suspicions: Mapping[str, Suspicion] = field(default_factory=dict)
    links: Mapping[tuple[str, str], tuple[tuple[int, float], ...]] = field(default_factory=dict)
    memory_bytes: tuple[float, ...] = ()
    limits_bytes: Mapping[str, float] = field(default_factory=dict)


def observe(model: CostModel, step: Iterable[Measurement], messages: Iterable[Message] = ()) -> CostModel:
    """Fold in what was measured in one step.

    Members are compared by what they took over what others need for the same layers. A step in which all are slow
    makes nobody slow, and what a slow member took does not make its layers seem costlier.

    Args:
        model: what was known before.
        step: operations of all members; those without work or time are left out.
        messages: between members.

    Raises:
        ValueError: a measurement is of layers that do not exist.
    """
    rows = [row for row in step if row.work > 0 and row.seconds > 0]
    for row in rows:
        if not 0 <= row.start < row.stop <= model.profile.num_layers:
            raise ValueError(f"layers [{row.start}, {row.stop}) are not of a model of {model.profile.num_layers}")
    suspicions = _judge(model, rows)
    paces = dict(model.paces)
    for (kind, layer), measured in _per_layer(model, rows, suspicions).items():
        paces[kind, layer] = (*paces.get((kind, layer), ()), *measured)[-WINDOW:]
    links = dict(model.links)
    for message in messages:
        link = (message.source, message.destination)
        links[link] = (*links.get(link, ()), (message.size_bytes, message.seconds))[-WINDOW:]
    return replace(model, paces=paces, suspicions=suspicions, links=links)


def among(model: CostModel, worker_ids: Iterable[str]) -> CostModel:
    """What is known of these workers alone; of layers everything is kept, whoever measured it."""
    kept = frozenset(worker_ids)
    return replace(
        model,
        suspicions={worker: each for worker, each in model.suspicions.items() if worker in kept},
        links={link: known for link, known in model.links.items() if kept.issuperset(link)},
        limits_bytes={worker: limit for worker, limit in model.limits_bytes.items() if worker in kept},
    )


def slow_members(model: CostModel) -> dict[str, float]:
    """Members that have been slow for some steps, and how many times as long as others they take.

    Who is slow is cleared by measurements alone, so leave it some work.
    """
    return {worker: each.slowdown for worker, each in sorted(model.suspicions.items()) if each.slow}


def speeds(model: CostModel, worker_ids: Sequence[str]) -> tuple[float, ...]:
    """Per member its speed for `dataflow.route`: 1, or less for one that is slow."""
    slow = slow_members(model)
    return tuple(1.0 / slow.get(worker, 1.0) for worker in worker_ids)


def capacities(model: CostModel, worker_ids: Sequence[str], stages: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Per stage the speeds of its members together, for `graph.cut`; exactly their number while nobody is slow."""
    speed = speeds(model, worker_ids)
    return tuple(sum(speed[member] for member in members) for members in stages)


def costs(model: CostModel) -> tuple[float, ...]:
    """Per layer the seconds that forward and backward take per work together; the profile's costs until all are known.

    Layers are known when each kind was measured of each.
    """
    found = [[layer_s(model, kind, layer) for kind in KINDS] for layer in range(model.profile.num_layers)]
    if any(part is None for parts in found for part in parts):
        return model.profile.costs
    return tuple(sum(part for part in parts if part is not None) for parts in found)


def layer_s(model: CostModel, kind: Kind, layer: int) -> float | None:
    """Seconds per work of a layer; None when it was not measured."""
    measured = model.paces.get((kind, layer))
    return median(measured) if measured else None


def limits(model: CostModel, worker_ids: Sequence[str], stages: Sequence[Sequence[int]]) -> tuple[float, ...] | None:
    """Per stage the bytes that its smallest member can hold, for `graph.cut`; None when no limit is known."""
    if not model.limits_bytes or not model.memory_bytes:
        return None
    return tuple(
        min((model.limits_bytes.get(worker_ids[member], float("inf")) for member in members), default=float("inf"))
        for members in stages
    )


def transfer_s(model: CostModel, source: str, destination: str, size_bytes: int) -> float | None:
    """Seconds that a message takes: latency by small ones, bandwidth by large ones; None for an unknown link."""
    known = model.links.get((source, destination))
    if not known:
        return None
    small = [seconds for size, seconds in known if size <= SMALL_BYTES]
    latency_s = median(small) if small else 0.0
    per_byte = [max(seconds - latency_s, 0.0) / size for size, seconds in known if size > SMALL_BYTES]
    return latency_s + (median(per_byte) * size_bytes if per_byte else 0.0)


def _per_layer(
    model: CostModel, rows: Sequence[Measurement], suspicions: Mapping[str, Suspicion]
) -> dict[tuple[Kind, int], list[float]]:
    """Seconds per work of each layer, as an ordinary member would have taken; a leg's time by the profile's costs."""
    found: dict[tuple[Kind, int], list[float]] = {}
    for row in rows:
        whole = sum(model.profile.costs[row.start : row.stop])
        per_cost = row.seconds / row.work / whole / _excess(suspicions.get(row.worker_id))
        for layer in range(row.start, row.stop):
            found.setdefault((row.kind, layer), []).append(per_cost * model.profile.costs[layer])
    return found


def _excess(suspicion: Suspicion | None) -> float:
    """By how much a member's last step has to be divided; a first sign is enough, so that nothing slow is learned."""
    if suspicion is None or not suspicion.recent:
        return 1.0
    return suspicion.recent[-1] if suspicion.slow or suspicion.recent[-1] >= SLOW else 1.0


def _judge(model: CostModel, rows: Sequence[Measurement]) -> dict[str, Suspicion]:
    """What is thought of each member after this step; members that were not heard of keep their standing."""
    ratios: dict[str, list[float]] = {}
    expected = _expected(model, rows)
    for row in rows:
        usual = sum(expected[row.kind, layer] for layer in range(row.start, row.stop)) * row.work
        ratios.setdefault(row.worker_id, []).append(row.seconds / usual)
    judged = dict(model.suspicions)
    if not ratios:
        return judged
    each = {worker: median(values) for worker, values in ratios.items()}
    usual = median_low(sorted(each.values()))
    for worker, value in each.items():
        judged[worker] = _next(judged.get(worker, Suspicion()), value / usual)
    return judged


def _expected(model: CostModel, rows: Sequence[Measurement]) -> dict[tuple[Kind, int], float]:
    """Seconds per work of each layer, as known before; of layers that are new, as the faster half takes them now.

    Where two members share new layers and one is slow, the mean of both would make neither look odd.
    """
    now = _per_layer(model, rows, {})
    known = model.paces
    return {key: median(known[key]) if key in known else median_low(measured) for key, measured in now.items()}


def _next(before: Suspicion, slowdown: float) -> Suspicion:
    """Called slow, or cleared, only after as many steps in a row as say so."""
    recent = (*before.recent, slowdown)[-STEPS:]
    slow = before.slow
    if len(recent) == STEPS:
        slow = min(recent) >= SLOW or (slow and max(recent) >= CLEARED)
    return Suspicion(slowdown=median(recent), recent=recent, slow=slow)
