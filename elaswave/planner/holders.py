"""Which members hold and sum which units."""

from collections.abc import Sequence

from elaswave.planner.plan import Bucket
from elaswave.planner.profile import Profile


def buckets(profile: Profile, layers: Sequence[tuple[int, ...]]) -> tuple[Bucket, ...]:
    """Units by the members that hold them, in order of the first unit.

    Args:
        profile: of the model.
        layers: per member those that it holds; of all members together, every layer.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for member, held in enumerate(layers):
        groups.setdefault(held, []).append(member)
    holders: list[set[int]] = [set() for _ in range(profile.num_layers)]
    for group, held in enumerate(groups):
        for layer in held:
            holders[layer].add(group)
    units: dict[tuple[int, ...], list[int]] = {}
    for unit, users in enumerate(profile.users):
        units.setdefault(tuple(sorted(set().union(*(holders[layer] for layer in users)))), []).append(unit)
    members = list(groups.values())
    return tuple(
        Bucket(units=tuple(mine), members=tuple(sorted(member for group in where for member in members[group])))
        for where, mine in units.items()
    )
