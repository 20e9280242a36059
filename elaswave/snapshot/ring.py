"""Who keeps copies of whose shard, and which copies to restore from: pure decisions.

Members stand in a circle in which every failure domain is one arc; a copy of every shard goes the same number of
places further. So everybody holds equally many copies, and a shift longer than the longest arc leaves every
domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHIFTS_MAX = 256
"""Shifts that are considered; more only matters with more members, where the first ones are good enough."""


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


def holders(domains: Sequence[str], copies: int) -> tuple[tuple[int, ...], ...]:
    """Which members keep a copy of each member's shard.

    Other failure domains come first, and different ones for the copies of one shard; among equals the nearest
    neighbours in rank, who will own most of the shard should its owner be lost.

    Args:
        domains: failure domain of each member, in order of rank.
        copies: wanted per shard.

    Returns:
        Per member, min(copies, members - 1) others; every member keeps that many.
    """
    size = len(domains)
    codes = {domain: code for code, domain in enumerate(dict.fromkeys(domains))}
    circle = sorted(range(size), key=lambda member: (codes[domains[member]], member))
    arcs = np.array([codes[domains[member]] for member in circle], np.int64)
    chosen: list[int] = []
    for _ in range(min(copies, size - 1)):
        free = [shift for shift in _shifts(arcs) if shift not in chosen]
        chosen.append(min(free, key=lambda shift: _cost(arcs, chosen, shift)))
    found: list[tuple[int, ...]] = [()] * size
    for place, member in enumerate(circle):
        found[member] = tuple(circle[(place + shift) % size] for shift in chosen)
    return tuple(found)


def _shifts(arcs: np.ndarray) -> list[int]:
    """Shifts worth a look: the nearest ones, and multiples of the longest arc."""
    size, longest = len(arcs), int(np.bincount(arcs).max())
    near = [shift for step in range(1, SHIFTS_MAX // 4 + 1) for shift in (step, size - step)]
    far = [step * longest for step in range(1, SHIFTS_MAX // 2 + 1)]
    return [shift for shift in dict.fromkeys(near + far) if 0 < shift < size]


def _cost(arcs: np.ndarray, chosen: Sequence[int], shift: int) -> tuple[int, int, int, int]:
    """Copies in their owner's domain, copies in the domain of an earlier copy, distance."""
    size = len(arcs)
    there = np.roll(arcs, -shift)
    shared = np.zeros(size, bool)
    for other in chosen:
        shared |= np.roll(arcs, -other) == there
    return int((there == arcs).sum()), int(shared.sum()), min(shift, size - shift), shift


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
