"""Which members hold and sum which units, when groups of members hold the same layers."""

from collections.abc import Sequence

from elaswave.planner.plan import Bucket
from elaswave.planner.profile import Profile


def buckets(
    profile: Profile, groups: Sequence[Sequence[int]], held: Sequence[Sequence[int]]
) -> tuple[Bucket, ...]:
    """Units by the members that hold them, in order of the first unit.

    Args:
        profile: of the model.
        groups: disjoint groups of members.
        held: for each group the layers that each of its members holds; of all groups together, every layer.
    """
    holders: list[set[int]] = [set() for _ in range(profile.num_layers)]
    for group, layers in enumerate(held):
        for layer in layers:
            holders[layer].add(group)
    units: dict[tuple[int, ...], list[int]] = {}
    for unit, users in enumerate(profile.users):
        units.setdefault(tuple(sorted(set().union(*(holders[layer] for layer in users)))), []).append(unit)
    found: dict[tuple[int, ...], list[int]] = {}
    for where, mine in units.items():
        found.setdefault(tuple(sorted(member for group in where for member in groups[group])), []).extend(mine)
    return tuple(Bucket(units=tuple(sorted(mine)), members=members) for members, mine in found.items())
