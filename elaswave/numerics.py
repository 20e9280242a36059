"""Sums whose bits do not depend on who adds what, or in which order.

Gradients add in int64 fixed point: integers are associative, so any sharing of the micro-batches over any number of
workers gives the same bits. The resolution of 2**-44 is finer than the rounding of a float32 sum. Like the
fixed-point reductions of ReproBLAS (https://doi.org/10.1145/3389360), in its simplest form.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from elaswave.config import Numerics, Optimizer
from elaswave.errors import NumericsError

FRACTION_BITS = 44
BOUND = 128.0
"""Gradients of one micro-batch must stay below this, where the last bit of a float64 next to 1.5 * 2**8 is 2**-44."""
CHUNK = 256
LIMB_BITS = 40
FIRST_LIMB_BITS = 16
LIMBS = 3
SQUARES_BOUND = 2.0**36
"""The squares of a gradient must sum to less, so that limbs of up to 1024 shards cannot wrap around."""

BLOCK = 1 << 15
"""Elements that are converted at a time: a multiple of `CHUNK` whose float64 copy stays in the second-level cache."""

SPARE = 4
"""Of the memory of a sum, one part in so many is kept free for further layers; pages that are not used cost nothing."""

_MAGIC = 1.5 * 2.0 ** (52 - FRACTION_BITS)
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))
_RESOLUTION = 2.0**-FRACTION_BITS


def pin_threads(num_threads: int) -> None:
    """Fix what changes bits: the number of torch's threads, and kernels that are not deterministic."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=False)
    # what is written before it is read has no bits to fix, and filling it takes as long as writing it once more
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[missing-attribute]  # a property


class _Sum:
    """A flat sum of what is added part by part, in memory with room for more elements.

    Zeroing costs nothing: the first value of a part overwrites what was there. Parts that nothing was added to become
    zero when the sum is looked at.
    """

    def __init__(self, num_elements: int, dtype: torch.dtype) -> None:
        self._flat = torch.zeros(num_elements + num_elements // SPARE, dtype=dtype)
        self._used = 0  # elements from the start that may not be zero
        self._parts: dict[int, int] = {}  # first element -> behind the last, of what was added to since it was zeroed
        self._shape(num_elements)

    def _shape(self, num_elements: int) -> None:
        self._sum = self._flat[:num_elements]

    @property
    def buffer(self) -> torch.Tensor:
        """All of it, (num_elements,)."""
        self._settle()
        return self._sum

    def zero(self) -> None:
        self._parts = {}

    def resize(self, num_elements: int) -> bool:
        """Be a sum of so many other elements, zero, in the same memory; False when it has no room for them."""
        if num_elements > len(self._flat):
            return False
        self.zero()
        self._shape(num_elements)
        return True

    def _part(self, start: int, stop: int) -> tuple[torch.Tensor, bool]:
        """A part to add to, and whether it is to be overwritten instead."""
        part = self._sum[start:stop]
        if self._parts.get(start) == stop:
            return part, False
        if any(first < stop and start < last for first, last in self._parts.items()):
            self._settle()
            return part, False
        self._parts[start] = stop
        self._used = max(self._used, stop)
        return part, True

    def _settle(self) -> None:
        """Let what nothing was added to be zero."""
        at = 0
        for start, stop in (*sorted(self._parts.items()), (self._used, self._used)):
            self._flat[at:start].zero_()
            at = max(at, stop)
        if self._used:
            self._parts = {0: len(self._flat)}


class ExactAccumulator(_Sum):
    """Gradients as int64 fixed point.

    Args:
        num_elements: of the gradient.
        num_micro_batches: that are added over all workers; their sum must not wrap around.

    Attributes:
        buffer: flat sum, (num_elements,) int64, in units of 2**-44.
        bound: every element of a micro-batch's gradient must be smaller.
    """

    def __init__(self, num_elements: int, num_micro_batches: int = 1) -> None:
        self.bound = min(BOUND, 2.0 ** (63 - FRACTION_BITS) / num_micro_batches)
        super().__init__(num_elements, torch.int64)

    def _shape(self, num_elements: int) -> None:
        super()._shape(num_elements)
        self._wide = np.empty(min(num_elements, BLOCK))
        self._bits = self._wide.view(np.int64)

    def add(self, gradient: torch.Tensor, micro_batch: int, at: int = 0) -> None:
        """Add a flat gradient of one micro-batch to the elements from `at` on.

        Adding 1.5 * 2**8 to a float64 shifts its binary point to where the last bit is worth 2**-44, and rounds
        there; the difference of the bit patterns is the integer.

        Raises:
            NumericsError: some element is not below `bound`, or not a number.
        """
        if not gradient.numel():
            return
        values = gradient.float().numpy()
        largest = max(-float(values.min()), float(values.max()))  # either is nan when some element is not a number
        if not largest < self.bound:
            raise NumericsError(
                f"micro-batch {micro_batch} has a gradient of {largest:g}; exact sums need less than {self.bound:g}. "
                "Lower optimizer.lr, or use training.numerics = 'fast'"
            )
        found, first = self._part(at, at + len(values))
        sums = found.numpy()
        for start in range(0, len(values), BLOCK):
            part, total = values[start : start + BLOCK], sums[start : start + BLOCK]
            wide, bits = self._wide[: len(part)], self._bits[: len(part)]
            np.add(part, _MAGIC, out=wide, dtype=np.float64)
            np.subtract(bits, _MAGIC_BITS, out=total if first else bits)
            if not first:
                np.add(total, bits, out=total)

    def add_product(
        self, rows: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype, micro_batch: int, at: int = 0
    ) -> None:
        """Add the gradient `rows.t() @ columns`, rounded to `dtype`; raises as `add` does."""
        self.add((rows.t() @ columns).to(dtype).view(-1), micro_batch, at)

    def to_float(self, part: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A part of the sum as float32, in `out`."""
        np.multiply(part.numpy(), _RESOLUTION, out=out.numpy(), dtype=np.float64)
        return out


class FastAccumulator(_Sum):
    """Gradients as plain float32 sums: half the bytes, and bits that depend on the layout.

    Attributes:
        buffer: flat sum, (num_elements,) float32.
    """

    def __init__(self, num_elements: int) -> None:
        super().__init__(num_elements, torch.float32)

    def add(self, gradient: torch.Tensor, micro_batch: int, at: int = 0) -> None:
        """Add a flat gradient of one micro-batch to the elements from `at` on."""
        part, first = self._part(at, at + gradient.numel())
        if first:
            part.copy_(gradient)
        else:
            part.add_(gradient)

    def add_product(
        self, rows: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype, micro_batch: int, at: int = 0
    ) -> None:
        """Add the gradient `rows.t() @ columns`, rounded to `dtype`."""
        if not rows.dtype == columns.dtype == dtype == torch.float32:
            self.add((rows.t() @ columns).to(dtype).view(-1), micro_batch, at)
            return
        shape = (rows.shape[1], columns.shape[1])
        part, first = self._part(at, at + shape[0] * shape[1])
        if first:
            torch.mm(rows.t(), columns, out=part.view(shape))
        else:
            part.view(shape).addmm_(rows.t(), columns)

    def to_float(self, part: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A part of the sum: as it is."""
        return part


def make_accumulator(
    numerics: Numerics, num_elements: int, num_micro_batches: int = 1
) -> ExactAccumulator | FastAccumulator:
    """Where gradients are summed.

    Args:
        numerics: `exact` or `fast`.
        num_elements: of the gradient.
        num_micro_batches: of one step over the whole job.
    """
    if numerics is Numerics.EXACT:
        return ExactAccumulator(num_elements, num_micro_batches)
    return FastAccumulator(num_elements)


def square_sum_limbs(shard: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Sum of squares as three integers, so that the sums of all shards add up to the same total however it is cut.

    Squares are summed in float64 over fixed chunks, which no cut divides; each chunk's sum is then split without
    rounding that depends on others into integers worth 2**-16, 2**-56 and 2**-96.

    Args:
        shard: flat float32 elements.
        ranges: global (start, stop) pieces of the shard, each a whole number of chunks from the start of its layer,
            or reaching to the layer's end.

    Raises:
        NumericsError: the gradient is infinite, not a number, or its squares sum to `SQUARES_BOUND` or more.
    """
    starts = _chunk_starts(tuple(ranges))
    if not len(starts):
        return (0,) * LIMBS
    with np.errstate(invalid="ignore"):
        rest = np.ldexp(_square_sums(shard.numpy(), starts), FIRST_LIMB_BITS)
    if not rest.sum() < np.ldexp(SQUARES_BOUND, FIRST_LIMB_BITS):
        raise _norm_error()
    limbs = []
    for _ in range(LIMBS):
        whole = np.floor(rest)
        limbs.append(int(whole.astype(np.int64).sum()))
        rest = np.ldexp(rest - whole, LIMB_BITS)
    return tuple(limbs)


def _square_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum of squares of every chunk, float64, some chunks at a time."""
    found = np.empty(len(starts))
    wide = np.empty(min(len(values), BLOCK))
    for first in range(0, len(starts), BLOCK // CHUNK):
        some = starts[first : first + BLOCK // CHUNK]
        stop = starts[first + len(some)] if first + len(some) < len(starts) else len(values)
        part = values[some[0] : stop]
        squares = np.multiply(part, part, out=wide[: len(part)], dtype=np.float64)
        np.add.reduceat(squares, some - some[0], out=found[first : first + len(some)])
    return found


@lru_cache(maxsize=16)
def _chunk_starts(ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Local index of the first element of every chunk."""
    starts: list[int] = []
    local = 0
    for start, stop in ranges:
        starts.extend(range(local, local + stop - start, CHUNK))
        local += stop - start
    return np.array(starts, np.int64)


def norm_from_limbs(limbs: Sequence[int]) -> float:
    """Root of the sum of squares whose limbs have been added over all shards.

    Raises:
        NumericsError: the sum is `SQUARES_BOUND` or more; what one shard alone refuses, any cut refuses.
    """
    total = 0
    for limb in limbs:
        total = (total << LIMB_BITS) + limb
    squares = total / (1 << (FIRST_LIMB_BITS + (LIMBS - 1) * LIMB_BITS))
    if squares >= SQUARES_BOUND:
        raise _norm_error()
    return math.sqrt(squares)


def _norm_error() -> NumericsError:
    return NumericsError(f"the gradient's norm is not below {math.sqrt(SQUARES_BOUND):g}; lower optimizer.lr")


def clip_scale(norm: float, clip_norm: float) -> float:
    """Factor that brings a gradient of this norm down to `clip_norm`; 1 when it is below, or clipping is off."""
    return 1.0 if clip_norm == 0.0 or norm <= clip_norm else clip_norm / norm


def learning_rate(step: int, config: Optimizer, steps: int) -> float:
    """Linear warm-up, then a cosine down to `min_lr` at the last step.

    Args:
        step: from 1.
        config: peak, end and warm-up.
        steps: of the whole run.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))
