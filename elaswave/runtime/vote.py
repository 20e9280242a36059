"""The vote of a step: one sum of integers says that every gradient is in, what it weighs, and what was lost.

Every micro-batch has one counter and one slot for the bits of its loss. As exactly one worker fills a slot, the
sum of all workers' slots is that worker's value, bit for bit, in whatever order it is added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from elaswave.errors import CorruptState

LIMBS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What all members know after the vote.

    Attributes:
        losses: loss of each micro-batch, already divided by the tokens of the global batch.
        limbs: fixed-point sum of the squares of the whole gradient.
    """

    losses: tuple[float, ...]
    limbs: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss per token of the global batch, added in order of micro-batch."""
        total = 0.0
        for loss in self.losses:
            total += loss
        return total


def ballot(losses: Mapping[int, float], num_micro_batches: int, limbs: Sequence[int]) -> torch.Tensor:
    """This worker's part of the sum: int64 values [counts, loss bits, limbs].

    Args:
        losses: loss of each micro-batch that this worker computed.
        num_micro_batches: of the whole step.
        limbs: fixed-point sum of squares of this worker's shard of the reduced gradient.
    """
    values = np.zeros(2 * num_micro_batches + LIMBS, np.int64)
    ids = np.fromiter(losses, np.int64, len(losses))
    values[ids] = 1
    values[num_micro_batches + ids] = np.fromiter(losses.values(), np.float64, len(losses)).view(np.int64)
    values[2 * num_micro_batches :] = limbs
    return torch.from_numpy(values)


def count(total: torch.Tensor, num_micro_batches: int) -> Vote:
    """Read the sum of all ballots.

    Raises:
        CorruptState: some micro-batch was computed by nobody or by several workers.
    """
    values = total.numpy()
    counts = values[:num_micro_batches]
    if not (counts == 1).all():
        wrong = {int(i): int(counts[i]) for i in np.flatnonzero(counts != 1)}
        raise CorruptState(f"micro-batches must be computed once each, but (id: times) {wrong}")
    losses = values[num_micro_batches : 2 * num_micro_batches].copy().view(np.float64)
    return Vote(losses=tuple(losses.tolist()), limbs=tuple(values[2 * num_micro_batches :].tolist()))
