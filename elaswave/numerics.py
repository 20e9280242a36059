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
"""Gradients of one micro-batch must stay below this, so that sums of many stay inside 63 bits."""
CHUNK = 256
LIMB_BITS = 40
FIRST_LIMB_BITS = 24
LIMBS = 3

_MAGIC = 1.5 * 2.0 ** (52 - FRACTION_BITS)
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))
_RESOLUTION = 2.0**-FRACTION_BITS


def pin_threads(num_threads: int) -> None:
    """Fix what changes bits: the number of torch's threads, and kernels that are not deterministic."""
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=False)


class ExactAccumulator:
    """Gradients as int64 fixed point.

    Attributes:
        buffer: flat sum, (num_elements,) int64, in units of 2**-44.
    """

    def __init__(self, num_elements: int) -> None:
        self.buffer = torch.zeros(num_elements, dtype=torch.int64)
        self._wide = torch.empty(num_elements, dtype=torch.float64)

    def zero(self) -> None:
        self.buffer.zero_()

    def add(self, gradient: torch.Tensor, micro_batch: int) -> None:
        """Add the flat float32 gradient of one micro-batch.

        Adding 1.5 * 2**8 to a float64 shifts its binary point to where the last bit is worth 2**-44, and rounds
        there; the difference of the bit patterns is the integer.

        Raises:
            NumericsError: some element is not below `BOUND`, or not a number.
        """
        low, high = torch.aminmax(gradient)
        largest = max(-low.item(), high.item())
        if not largest < BOUND:
            raise NumericsError(
                f"micro-batch {micro_batch} has a gradient of {largest:g}; exact sums need less than {BOUND:g}. "
                "Lower optimizer.lr, or use training.numerics = 'fast'"
            )
        self._wide.copy_(gradient)
        self._wide.add_(_MAGIC)
        bits = self._wide.view(torch.int64)
        self.buffer.add_(bits).sub_(_MAGIC_BITS)

    def to_float(self, part: torch.Tensor) -> torch.Tensor:
        """A part of the sum as float32, rounded once."""
        return part.double().mul_(_RESOLUTION).float()


class FastAccumulator:
    """Gradients as plain float32 sums: half the bytes, and bits that depend on the layout.

    Attributes:
        buffer: flat sum, (num_elements,) float32.
    """

    def __init__(self, num_elements: int) -> None:
        self.buffer = torch.zeros(num_elements)

    def zero(self) -> None:
        self.buffer.zero_()

    def add(self, gradient: torch.Tensor, micro_batch: int) -> None:
        """Add the flat float32 gradient of one micro-batch."""
        self.buffer.add_(gradient)

    def to_float(self, part: torch.Tensor) -> torch.Tensor:
        """A copy of a part of the sum."""
        return part.clone()


def make_accumulator(numerics: Numerics, num_elements: int) -> ExactAccumulator | FastAccumulator:
    return ExactAccumulator(num_elements) if numerics is Numerics.EXACT else FastAccumulator(num_elements)


def square_sum_limbs(shard: torch.Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Sum of squares as three integers, so that the sums of all shards add up to the same total however it is cut.

    Squares are summed in float64 over fixed chunks, which no cut divides; each chunk's sum is then split without
    rounding that depends on others into integers worth 2**-24, 2**-64 and 2**-104.

    Args:
        shard: flat float32 elements.
        ranges: global (start, stop) pieces of the shard, each a whole number of chunks from the start of its layer,
            or reaching to the layer's end.
    """
    squares = shard.double().square_().numpy()
    starts = _chunk_starts(tuple(ranges))
    if not len(starts):
        return (0,) * LIMBS
    with np.errstate(invalid="ignore"):
        rest = np.ldexp(np.add.reduceat(squares, starts), FIRST_LIMB_BITS)
    if not np.isfinite(rest).all() or rest.sum() >= 2.0**62:
        raise NumericsError("the gradient's norm is not a finite number; lower optimizer.lr")
    limbs = []
    for _ in range(LIMBS):
        whole = np.floor(rest)
        limbs.append(int(whole.astype(np.int64).sum()))
        rest = np.ldexp(rest - whole, LIMB_BITS)
    return tuple(limbs)


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
    """Root of the sum of squares whose limbs have been added over all shards."""
    total = 0
    for limb in limbs:
        total = (total << LIMB_BITS) + limb
    return math.sqrt(total / (1 << (FIRST_LIMB_BITS + (LIMBS - 1) * LIMB_BITS)))


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
