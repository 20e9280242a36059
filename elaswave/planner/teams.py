"""Which replicas work together: each on its own as far as possible, so that what one has lost delays no other.

A team is one replica, or several that share their micro-batches stage by stage. Where a replica has lost a worker its
layers are cut anew over the others, and it takes fewer micro-batches; the other replicas stay as they are. This is the
heterogeneous pipeline of Oobleck (https://arxiv.org/abs/2309.08125), with cuts that differ per micro-batch.
"""

import heapq
from collections.abc import Mapping, Sequence

Groups = tuple[tuple[int, ...], ...]
"""Per stage its members, or the layers they hold; ascending."""

CROWDING = 1.5
"""The most layers that a member may get when its replica works alone, in units of its share of a full grid."""


def together(ranks: Sequence[int], num_stages: int) -> tuple[Groups, ...]:
    """One team of all members, each at the stage of its rank."""
    return (tuple(tuple(i for i, rank in enumerate(ranks) if rank % num_stages == s) for s in range(num_stages)),)


def apart(ranks: Sequence[int], num_stages: int) -> tuple[Groups, ...]:
    """Every replica a team, in order; those whose members would have too many layers join others.

    Args:
        ranks: of the members, ascending; replica d has the ranks d P .. d P + P - 1.
        num_stages: P.
    """
    return _joined([_groups(row, num_stages) for row in _replicas(ranks, num_stages)])


def regrouped(ranks: Sequence[int], num_stages: int) -> tuple[tuple[Groups, ...], ...]:
    """What replicas can become that lend each other workers: as many whole ones as can be, or equal ones.

    Workers take the place of lost ones of their own stage where they can; others change their stage.

    Args:
        ranks: of the members, ascending.
        num_stages: P.
    """
    whole, rest = divmod(len(ranks), num_stages)
    many = whole + (rest > 0)
    even = [len(ranks) // many + (i < len(ranks) % many) for i in range(many)]
    return tuple(
        _joined([_groups(row, num_stages) for row in _lent(_replicas(ranks, num_stages), num_stages, sizes)])
        for sizes in ([num_stages] * whole + [rest] * (rest > 0), even)
    )


def _replicas(ranks: Sequence[int], num_stages: int) -> list[dict[int, int]]:
    """Per replica the member at each stage."""
    found: dict[int, dict[int, int]] = {}
    for member, rank in enumerate(ranks):
        found.setdefault(rank // num_stages, {})[rank % num_stages] = member
    return list(found.values())


def _lent(replicas: list[dict[int, int]], num_stages: int, sizes: Sequence[int]) -> list[dict[int, int]]:
    """Replicas of these sizes, the largest of what is left being the largest again; the rest of them is dissolved."""
    order = sorted(range(len(replicas)), key=lambda i: (-len(replicas[i]), i))
    targets = dict(zip(order, [*sizes, *[0] * (len(order) - len(sizes))], strict=True))
    spare: list[tuple[int, int]] = []
    for i in sorted(targets, key=lambda i: targets[i]):
        while len(replicas[i]) > targets[i]:
            spare.append(replicas[i].popitem())
    for i in order:
        while len(replicas[i]) < targets[i]:
            holes = [stage for stage in range(num_stages) if stage not in replicas[i]]
            fitting = [place for place, (stage, _) in enumerate(spare) if stage in holes]
            stage, member = spare.pop(fitting[0] if fitting else 0)
            replicas[i][stage if stage in holes else holes[0]] = member
    return [row for row in replicas if row]


def _groups(row: Mapping[int, int], num_stages: int) -> Groups:
    return tuple((row[stage],) if stage in row else () for stage in range(num_stages))


def _joined(teams: list[Groups]) -> tuple[Groups, ...]:
    """Teams whose members would have too many layers join those with which they have the fewest."""
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


def _join(one: Groups, other: Groups) -> Groups:
    return tuple(tuple(sorted(a + b)) for a, b in zip(one, other, strict=True))
