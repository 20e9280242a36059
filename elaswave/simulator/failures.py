"""What goes wrong in a cluster, and when: a list of events drawn once from rates, the same for every policy.

Failures of devices and of racks are Poisson processes, as are slow phases of devices; a hit on what is down already is
not seen. Repairs take an exponential time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from elaswave.errors import ConfigError

HOUR_S = 3600.0


class Kind(IntEnum):
    """What happens to a device, or to all of a rack."""

    DOWN = 0
    HANGS = 1
    RACK_DOWN = 2
    SLOW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices in nodes in racks, and how often they fail. Rates of 0 hours mean never.

    Attributes:
        ranks: devices, one worker on each.
        per_node: devices of a node.
        nodes_per_rack: which fail together with its power or its switch.
        mtbf_h: mean hours between failures of one device.
        hang_share: of those failures in which the process stays and is silent.
        rack_mtbf_h: the same of one rack.
        slow_mtbf_h: mean hours between slow phases of one device.
        slowdown: times as long as others a slow device takes.
        slow_h: mean hours of a slow phase.
        repair_h: mean hours until what is down comes back.
    """

    ranks: int
    per_node: int = 8
    nodes_per_rack: int = 8
    mtbf_h: float = 50_000.0
    hang_share: float = 0.1
    rack_mtbf_h: float = 0.0
    slow_mtbf_h: float = 0.0
    slowdown: float = 1.3
    slow_h: float = 4.0
    repair_h: float = 6.0

    def __post_init__(self) -> None:
        for name in ("ranks", "per_node", "nodes_per_rack"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "give at least 1")
        for name in ("mtbf_h", "rack_mtbf_h", "slow_mtbf_h", "slow_h", "repair_h"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "give hours, or 0 for never")
        if not 0 <= self.hang_share <= 1:
            raise ConfigError("--hang-share", self.hang_share, "give a share from 0 to 1")
        if self.slowdown < 1:
            raise ConfigError("--slowdown", self.slowdown, "give at least 1")

    def node_of(self, rank: int) -> int:
        return rank // self.per_node

    def rack_of(self, rank: int) -> int:
        return rank // (self.per_node * self.nodes_per_rack)

    @property
    def racks(self) -> int:
        """Also one that is not full."""
        return self.rack_of(self.ranks - 1) + 1

    def in_rack(self, rack: int) -> range:
        """Ranks of a rack."""
        size = self.per_node * self.nodes_per_rack
        return range(rack * size, min((rack + 1) * size, self.ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One thing that goes wrong.

    Attributes:
        at_s: when.
        kind: what.
        ranks: whom it hits.
        lasts_s: until it is over.
    """

    at_s: float
    kind: Kind
    ranks: range
    lasts_s: float


def failures(cluster: Cluster, hours: float, chance: np.random.Generator) -> tuple[Failure, ...]:
    """All failures of a time, ascending.

    Args:
        cluster: what may fail.
        hours: how long.
        chance: draws; equal generators give equal failures.
    """
    found: list[Failure] = []
    for at_s in _times(cluster.mtbf_h, cluster.ranks, hours, chance):
        rank = int(chance.integers(cluster.ranks))
        kind = Kind.HANGS if chance.random() < cluster.hang_share else Kind.DOWN
        lasts_s = chance.exponential(cluster.repair_h) * HOUR_S
        found.append(Failure(at_s=at_s, kind=kind, ranks=range(rank, rank + 1), lasts_s=lasts_s))
    for at_s in _times(cluster.rack_mtbf_h, cluster.racks, hours, chance):
        ranks, lasts_s = cluster.in_rack(int(chance.integers(cluster.racks))), chance.exponential(cluster.repair_h)
        found.append(Failure(at_s=at_s, kind=Kind.RACK_DOWN, ranks=ranks, lasts_s=lasts_s * HOUR_S))
    for at_s in _times(cluster.slow_mtbf_h, cluster.ranks, hours, chance):
        rank, lasts_s = int(chance.integers(cluster.ranks)), chance.exponential(cluster.slow_h) * HOUR_S
        found.append(Failure(at_s=at_s, kind=Kind.SLOW, ranks=range(rank, rank + 1), lasts_s=lasts_s))
    return tuple(sorted(found, key=lambda failure: (failure.at_s, failure.kind, failure.ranks.start)))


def _times(mtbf_h: float, count: int, hours: float, chance: np.random.Generator) -> Iterator[float]:
    """Seconds at which any of so many things fails."""
    if not mtbf_h:
        return
    for at in np.sort(chance.random(chance.poisson(count * hours / mtbf_h))):
        yield float(at) * hours * HOUR_S
