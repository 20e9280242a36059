"""Digests that members compare: of shards, and per unit of the weights that they make."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elaswave.snapshot.verify import combine, digest
from elaswave.zero.layout import Range
from elaswave.zero.remap import Part
from elaswave.zero.schema import MASTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a shard adds to the digests of the whole.

    Attributes:
        state: of all its tensors.
        units: per unit of the weights that its master weights make; those of all shards add up to the unit's.
    """

    state: int
    units: tuple[int, ...]


def prove(part: Part, bounds: Sequence[Range], dtype: torch.dtype) -> Proof:
    """Digest a shard once.

    Args:
        part: the shard.
        bounds: (start, stop) of each unit in flat order.
        dtype: of the weights.
    """
    units = [0] * len(bounds)
    starts, master = [start for start, _ in bounds], part.tensors[MASTER]
    local = 0
    for start, stop in part.ranges:
        while start < stop:
            unit = bisect_right(starts, start) - 1
            size = min(stop, bounds[unit][1]) - start
            weights = master[local : local + size].to(dtype)
            units[unit] = combine([units[unit], digest(((start, start + size),), {MASTER: weights})])
            start, local = start + size, local + size
    if dtype is not master.dtype:
        return Proof(state=digest(part.ranges, part.tensors), units=tuple(units))
    others = {name: tensor for name, tensor in part.tensors.items() if name != MASTER}
    return Proof(state=combine([digest(part.ranges, others), *units]), units=tuple(units))
