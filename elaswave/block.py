"""Several flat tensors of equal length in one allocation, so that a whole shard travels as one message."""

from collections.abc import Mapping

import torch

from elaswave.memory import allocate

Scalars = Mapping[str, float | int | bool | None]
"""JSON-able values by name."""

ALIGNMENT = 64
"""Bytes; every tensor begins at a multiple, which keeps vector loads aligned."""


class Block:
    """Named flat tensors side by side.

    Two blocks of the same kinds and length have the same bytes at the same places.

    Attributes:
        kinds: dtype of each tensor by name; the order is that of the bytes.
        num_elements: of each tensor.
        raw: all bytes, padding included, as one uint8 tensor; zero at first.
        tensors: views of `raw`, each (num_elements,).
    """

    def __init__(self, kinds: Mapping[str, torch.dtype], num_elements: int) -> None:
        self.kinds = dict(kinds)
        self.num_elements = num_elements
        starts, size = [], 0
        for dtype in self.kinds.values():
            starts.append(size)
            size += -(-num_elements * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self.raw = allocate(size, torch.uint8)
        self.tensors: dict[str, torch.Tensor] = {
            name: self.raw[start : start + num_elements * dtype.itemsize].view(dtype)
            for start, (name, dtype) in zip(starts, self.kinds.items(), strict=True)
        }


class Slot(Block):
    """A block that is one version of a shard.

    Attributes:
        version: step after which the state was so; None while the bytes are not whole.
        scalars: what is not per element, such as step counters; equal on every shard of a version.
    """

    def __init__(self, kinds: Mapping[str, torch.dtype], num_elements: int) -> None:
        super().__init__(kinds, num_elements)
        self.version: int | None = None
        self.scalars: Scalars = {}
