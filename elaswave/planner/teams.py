"""Which replicas work together: each on its own as far as possible, so that what one has lost delays no other.

A team is one replica, or several that share their micro-batches stage by stage. Where a replica has lost a worker its
layers are cut anew over the others, and it takes fewer micro-batches; the other replicas stay as they are. This is the
heterogeneous pipeline of Oobleck (https://arxiv.org/abs/2309.08125), with cuts that differ per micro-batch.
"""

import heapq
from collections.abc import Sequence

Groups = tuple[tuple[int, ...], ...]
"""Per stage its members, or the layers they hold; ascending."""

CROWDING = 1.5
"""The most layers that a member may get when its replica works alone, in units of its share of a full grid."""


def together(ranks: Sequence[int], num_stages: int) -> tuple[Groups, ...]:
    """One team of all members, each at the stage of its rank."""
    return (_stages(range(len(ranks)), ranks, num_stages),)


def apart(ranks: Sequence[int], num_stages: int) -> tuple[Groups, ...]:
    """Every replica a team, in order; those whose members would have too many layers join others.

    Args:
        ranks: of the members, ascending; replica d has the ranks d P .. d P + P - 1.
        num_stages: P.
    """
    replicas: dict[int, list[int]] = {}
    for member, rank in enumerate(ranks):
        replicas.setdefault(rank // num_stages, []).append(member)
    teams = [_stages(members, ranks, num_stages) for members in replicas.values()]
    while len(teams) > 1:
        worst = max(range(len(teams)), key=lambda i: crowding(teams[i]))
        if crowding(teams[worst]) <= CROWDING:
            break
        joined = {i: _join(teams[worst], teams[i]) for i in range(len(teams)) if i != worst}
        partner = min(joined, key=lambda i: crowding(joined[i]))
        teams[min(worst, partner)] = joined[partner]
        del teams[max(worst, partner)]
    return tuple(teams)


def crowding(team: Groups) -> float:
    """The most layers of a member, in units of its share of a full grid, if stages get layers by their members."""
    return len(team) * max(map(len, team)) / size(team)


def size(team: Groups) -> int:
    """Members of a team."""
    return sum(map(len, team))


def counts(num_micro_batches: int, paces: Sequence[float], starts: Sequence[float]) -> tuple[int, ...]:
    """Micro-batches of each team, so that the last one ends as early as possible; lower indices first on ties.

    Args:
        num_micro_batches: of a step.
        paces: time that each team takes for one.
        starts: time that each team takes beside, once.
    """
    found = [0] * len(paces)
    queue = [(start + pace, team) for team, (start, pace) in enumerate(zip(starts, paces, strict=True))]
    heapq.heapify(queue)
    for _ in range(num_micro_batches):
        team = queue[0][1]
        found[team] += 1
        heapq.heapreplace(queue, (starts[team] + paces[team] * (found[team] + 1), team))
    return tuple(found)


def deal(works: Sequence[float], shares: Sequence[int]) -> list[int]:
    """Give every micro-batch to the team that has the least for its share, lower indices first on ties.

    Args:
        works: of each micro-batch.
        shares: of each team; one without gets nothing.

    Returns:
        Per micro-batch the index of its team. Of equal micro-batches, as many as there are shares, each team gets just
        its share.
    """
    loads = [0.0] * len(shares)
    queue = [(0.0, team) for team, share in enumerate(shares) if share]
    heapq.heapify(queue)
    chosen = []
    for work in works:
        team = queue[0][1]
        chosen.append(team)
        loads[team] += work
        heapq.heapreplace(queue, (loads[team] / shares[team], team))
    return chosen


def _stages(members: Sequence[int], ranks: Sequence[int], num_stages: int) -> Groups:
    stages: list[list[int]] = [[] for _ in range(num_stages)]
    for member in members:
        stages[ranks[member] % num_stages].append(member)
    return tuple(map(tuple, stages))


def _join(one: Groups, other: Groups) -> Groups:
    return tuple(tuple(sorted(a + b)) for a, b in zip(one, other, strict=True))
