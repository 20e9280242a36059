"""Who keeps copies of whose shard, and which copies to restore from: pure decisions.

Members stand in a circle in which every failure domain is one arc; a copy of every shard goes the same number of
places further. So everybody holds equally many copies, and a shift longer than the longest arc leaves every
domain. Pipeline stages lie across the arcs: where the shift meets the owner's own stage, two owners exchange holders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHIFTS_MAX = 256
"""Shifts that are considered; more only matters with more members, where the first ones are good enough."""

FLAW_WEIGHTS = np.array([27, 9, 3, 1])
"""Of the flaws that `_flaws` tells; one of a kind weighs more than all lesser ones of the two owners that exchange."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A whole shard that a survivor has.

    Attributes:
        layout_epoch: epoch of the layout that the shard belongs to.
        num_shards: of that layout.
        shard: index in that layout.
        version: step after which the state was so.
        owner: held as its owner, not as a copy.
    """

    layout_epoch: int
    num_shards: int
    shard: int
    version: int
    owner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to restore, and from whom.

    Attributes:
        layout_epoch: epoch of the layout to restore from.
        version: step to go back to.
        holders: per shard all workers that have it at that version, owners first.
        servers: per shard the one to serve it: its owner, or the holder that serves fewest.
    """

    layout_epoch: int
    version: int
    holders: tuple[tuple[str, ...], ...]
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Nothing complete is left; of what comes closest:

    Attributes:
        layout_epoch: epoch of the layout, None when nobody has anything.
        version: step, None likewise.
        shards: indices that nobody has.
    """

    layout_epoch: int | None
    version: int | None
    shards: tuple[int, ...]


def holders(domains: Sequence[str], copies: int, stages: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """Which members keep a copy of each member's shard.

    Other failure domains come first, and other stages next, so that what is left of a job without all members of a
    stage has the state of that stage; then different domains for the copies of one shard. Among equals come the
    nearest neighbours in rank, who will own most of the shard should its owner be lost.

    Args:
        domains: failure domain of each member, in order of rank.
        copies: wanted per shard.
        stages: pipeline stage of each member; by default they do not matter.

    Returns:
        Per member, min(copies, members - 1) others; every member keeps that many.
    """
    size = len(domains)
    domain_of, stage_of = _codes(domains), _codes(range(size) if stages is None else stages)
    circle = np.argsort(domain_of, kind="stable")
    arcs, crossing = domain_of[circle], stage_of[circle]
    chosen: list[np.ndarray] = []
    for _ in range(min(copies, size - 1)):
        there = _shift(arcs, crossing, chosen)
        if 2 * copies <= size:  # with more copies an exchange could find no holder that is not one already
            _exchange(arcs, crossing, chosen, there)
        chosen.append(there)
    found: list[tuple[int, ...]] = [()] * size
    for index, member in enumerate(circle.tolist()):
        found[member] = tuple(int(circle[there[index]]) for there in chosen)
    return tuple(found)


def _codes(names: Sequence[str] | Sequence[int]) -> np.ndarray:
    """Names as integers in order of appearance."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([codes[name] for name in names], np.int64)


def _shift(arcs: np.ndarray, crossing: np.ndarray, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Per place that of its next holder, (members,): all the same number of places further, with fewest flaws.

    Args:
        arcs: domain of each place of the circle.
        crossing: stage of each place.
        chosen: places of the earlier copies.
    """
    size = len(arcs)
    places = np.arange(size)

    def cost(shift: int) -> tuple[int, ...]:
        flaws = _flaws(arcs, crossing, chosen, places, (places + shift) % size)
        return (*flaws.sum(axis=1).tolist(), min(shift, size - shift), shift)

    return (places + min(_shifts(arcs), key=cost)) % size


def _shifts(arcs: np.ndarray) -> list[int]:
    """Shifts worth a look: the nearest ones, and multiples of the longest arc, also with a place more for the stage."""
    size, longest = len(arcs), int(np.bincount(arcs).max())
    near = [shift for step in range(1, SHIFTS_MAX // 4 + 1) for shift in (step, size - step)]
    far = [step * longest + more for step in range(1, SHIFTS_MAX // 4 + 1) for more in (0, 1)]
    return [shift for shift in dict.fromkeys(near + far) if 0 < shift < size]


def _exchange(arcs: np.ndarray, crossing: np.ndarray, chosen: Sequence[np.ndarray], there: np.ndarray) -> None:
    """Let owners exchange their holders in `there` while that frees one of a copy in its own stage or in vain."""
    places = np.arange(len(arcs))

    def weights(owners: np.ndarray, held_by: np.ndarray) -> np.ndarray:
        return FLAW_WEIGHTS @ _flaws(arcs, crossing, chosen, owners, held_by)

    improved = True
    while improved:
        improved = False
        now = weights(places, there)
        vain, _, inside, _ = _flaws(arcs, crossing, chosen, places, there)
        for owner in np.flatnonzero(vain | inside).tolist():
            gain = now[owner] + now - weights(np.full_like(places, owner), there)
            gain -= weights(places, np.full_like(places, there[owner]))
            other = int(gain.argmax())
            if gain[other] > 0:
                pair, swapped = [owner, other], [other, owner]
                there[pair] = there[swapped]
                now[pair] = weights(np.array(pair), there[pair])
                improved = True


def _flaws(
    arcs: np.ndarray, crossing: np.ndarray, chosen: Sequence[np.ndarray], owners: np.ndarray, there: np.ndarray
) -> np.ndarray:
    """What is wrong with a copy of each owner's shard at the place `there`, the worst first, (4, owners) bool.

    In turn: it is in vain, as the owner has that already, or another copy is there; it is in its owner's domain; it is
    in its owner's stage; it is in the domain of an earlier copy.
    """
    vain, shared = there == owners, np.zeros(len(owners), bool)
    for other in chosen:
        vain = vain | (other[owners] == there)
        shared |= arcs[other[owners]] == arcs[there]
    return np.array([vain, arcs[there] == arcs[owners], crossing[there] == crossing[owners], shared])


def choose(offers: Mapping[str, Sequence[Holding]]) -> Decision | Lost:
    """The newest version, then the newest layout, of which the survivors have every shard.

    Args:
        offers: by worker id, what each survivor has.
    """
    found: dict[tuple[int, int], dict[int, list[tuple[bool, str]]]] = {}
    num_shards: dict[int, int] = {}
    for worker in sorted(offers):
        for holding in offers[worker]:
            shards = found.setdefault((holding.version, holding.layout_epoch), {})
            shards.setdefault(holding.shard, []).append((not holding.owner, worker))
            if num_shards.setdefault(holding.layout_epoch, holding.num_shards) != holding.num_shards:
                raise ValueError(f"offers disagree on the number of shards of layout {holding.layout_epoch}")
    for version, epoch in sorted(found, reverse=True):
        shards = found[version, epoch]
        if len(shards) == num_shards[epoch]:
            ordered = [[worker for _, worker in sorted(shards[i])] for i in range(num_shards[epoch])]
            owned = [any(not copy for copy, _ in shards[i]) for i in range(num_shards[epoch])]
            return Decision(
                layout_epoch=epoch,
                version=version,
                holders=tuple(tuple(dict.fromkeys(workers)) for workers in ordered),
                servers=_servers(ordered, owned),
            )
    return _closest(found, num_shards)


def _servers(ordered: Sequence[Sequence[str]], owned: Sequence[bool]) -> tuple[str, ...]:
    """Owners serve their own; the rest is spread, starting with those that fewest have."""
    servers: dict[int, str] = {i: workers[0] for i, workers in enumerate(ordered) if owned[i]}
    load: dict[str, int] = {}
    for worker in servers.values():
        load[worker] = load.get(worker, 0) + 1
    orphans = [i for i in range(len(ordered)) if not owned[i]]
    for i in sorted(orphans, key=lambda shard: (len(ordered[shard]), shard)):
        servers[i] = min(ordered[i], key=lambda worker: (load.get(worker, 0), worker))
        load[servers[i]] = load.get(servers[i], 0) + 1
    return tuple(servers[i] for i in range(len(ordered)))


def _closest(found: Mapping[tuple[int, int], Mapping[int, object]], num_shards: Mapping[int, int]) -> Lost:
    """What lacks the fewest shards; the newer on ties."""
    if not found:
        return Lost(layout_epoch=None, version=None, shards=())
    version, epoch = min(found, key=lambda key: (num_shards[key[1]] - len(found[key]), -key[0], -key[1]))
    missing = set(range(num_shards[epoch])) - set(found[version, epoch])
    return Lost(layout_epoch=epoch, version=version, shards=tuple(sorted(missing)))
