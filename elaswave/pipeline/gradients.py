"""What a worker has added up for the open step: sums of gradients, and of which micro-batches and layers they are.

After a fault the sums stay valid. Those of layers that are computed elsewhere from now on are set aside, and added
to the others when the step is reduced.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch

from elaswave.pipeline.buckets import Buckets, Key

Range = tuple[int, int]


class Accumulator(Protocol):
    """Where gradients are summed; see `elaswave.numerics`."""

    @property
    def buffer(self) -> torch.Tensor: ...

    def zero(self) -> None: ...

    def resize(self, num_elements: int) -> bool: ...

    def add(self, gradient: torch.Tensor, micro_batch: int, at: int = 0) -> None: ...

    def add_product(
        self, rows: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype, micro_batch: int, at: int = 0
    ) -> None: ...

    def to_float(self, part: torch.Tensor, out: torch.Tensor) -> torch.Tensor: ...


class Gradients:
    """Sums per bucket.

    Attributes:
        buckets: what this worker holds.
        dtype: of the sums.
        sums: by bucket.
        losses: of the micro-batches whose last layer is in the sums, by id.
        layers: by micro-batch the layers whose gradients are in the sums.
        aside: by unit the sums of units that this worker does not hold any more.
    """

    def __init__(self, buckets: Buckets, make: Callable[[int], Accumulator]) -> None:
        self._make = make
        self.losses: dict[int, float] = {}
        self.layers: dict[int, set[int]] = {}
        self.aside: dict[int, torch.Tensor] = {}
        self.buckets, self._converter = buckets, make(0)
        self.dtype = self._converter.buffer.dtype
        self.sums: dict[Key, Accumulator] = {key: make(buckets.size(key)) for key in buckets.keys}

    def hold(self, buckets: Buckets) -> None:
        """Go on in a new layout: sums of other buckets are set aside, and memory without sums is used again."""
        unused = [accumulator for key, accumulator in self.sums.items() if not self._goes_on(key, accumulator, buckets)]
        old, self.buckets = self.sums, buckets
        self.sums = {}
        for key in buckets.keys:
            self.sums[key] = old.get(key) or self._resized(unused, buckets.size(key)) or self._make(buckets.size(key))

    def _goes_on(self, key: Key, accumulator: Accumulator, buckets: Buckets) -> bool:
        """Whether a sum is needed further, in its place or set aside."""
        if key in buckets.keys:
            return True
        touched = [unit for unit in key if self._touched(unit)]
        for unit in touched:
            place = self.buckets.of_unit(unit)
            part = accumulator.buffer[place.start : place.stop]
            self.aside[unit] = self.aside[unit] + part if unit in self.aside else part
        return bool(touched)

    def _resized(self, unused: list[Accumulator], num_elements: int) -> Accumulator | None:
        """One of those that are of no use any more, of a new size; None when none of them has room for it."""
        for accumulator in unused:
            if accumulator.resize(num_elements):
                unused.remove(accumulator)
                return accumulator
        return None

    def _touched(self, unit: int) -> bool:
        users = set(self.buckets.table.users[unit])
        return any(users & layers for layers in self.layers.values())

    def begin(self) -> None:
        """Forget everything: a new step, or one of which nothing is kept."""
        for accumulator in self.sums.values():
            accumulator.zero()
        self.losses, self.layers, self.aside = {}, {}, {}

    def forget_records(self) -> None:
        """The step has been committed: what was added is of no use any more; `begin` clears the sums."""
        self.losses, self.layers, self.aside = {}, {}, {}

    def to_float(self, part: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A part of a sum as float32: the part itself if it is that already, `out` otherwise."""
        return self._converter.to_float(part, out)

    def record(self, micro_batch: int, layers: Iterable[int]) -> None:
        """The gradients of these layers are in the sums."""
        self.layers.setdefault(micro_batch, set()).update(layers)

    def spans(self) -> Mapping[int, tuple[Range, ...]]:
        """By micro-batch the ranges of layers in the sums, ascending."""
        return {micro_batch: spans_of(layers) for micro_batch, layers in self.layers.items()}


def within(ranges: Iterable[Range], start: int, stop: int) -> list[int]:
    """Numbers in [start, stop) that are in one of the ranges."""
    return [n for low, high in ranges for n in range(max(low, start), min(high, stop))]


def spans_of(numbers: Iterable[int]) -> tuple[Range, ...]:
    """Ascending (start, stop) ranges of a set of numbers."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return tuple(found)
