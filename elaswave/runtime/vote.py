"""The vote of a step: one sum of integers says that every gradient is in, what it weighs, and what was lost.

Gradients are counted by micro-batch and by layer, as a micro-batch's way through the layers may be shared. Every
micro-batch has one slot for the bits of its loss. As exactly one worker fills a slot, the sum of all workers' slots is
that worker's value, bit for bit, in whatever order it is added.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from elaswave.errors import CorruptState
from elaswave.runtime.exchange import signed, unsigned

LIMBS = 3
DAMAGES = 2
"""Units of weights, and copies of shards, that are not what they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What all members know after the vote.

    Attributes:
        losses: loss of each micro-batch, already divided by the tokens of the global batch.
        limbs: fixed-point sum of the squares of the whole gradient.
        digests: of every shard of the state that the step begins from, as its owner has it now, in [0, 2**64).
        damaged_weights: units, over all members, that the step was computed with and that are not what they should be.
        damaged_copies: of shards, over all members.
    """

    losses: tuple[float, ...]
    limbs: tuple[int, ...]
    digests: tuple[int, ...]
    damaged_weights: int = 0
    damaged_copies: int = 0

    @property
    def loss(self) -> float:
        """Mean loss per token of the global batch, added in order of micro-batch."""
        total = 0.0
        for loss in self.losses:
            total += loss
        return total


def ballot(
    losses: Mapping[int, float],
    contributions: Mapping[int, Collection[tuple[int, int]]],
    limbs: Sequence[int],
    digests: Mapping[int, int],
    num_micro_batches: int,
    num_layers: int,
    num_shards: int,
    damages: Sequence[int] = (0,) * DAMAGES,
) -> torch.Tensor:
    """This worker's part of the sum: int64 values, see `_sections`. They wrap around, as sums of bits and digests do.

    Args:
        losses: loss of each micro-batch whose last layer this worker computed.
        contributions: per micro-batch the (start, stop) layer ranges whose gradients are in this worker's sums.
        limbs: fixed-point sum of squares of this worker's shard of the reduced gradient.
        digests: of this worker's shard, by its index; signed or unsigned, the 64 bits count.
        num_micro_batches: of the whole step.
        num_layers: of the model.
        num_shards: of the layout.
        damages: units of weights and copies of shards here that are not what they should be.
    """
    values = np.zeros(3 * num_micro_batches + num_layers + LIMBS + DAMAGES + num_shards, np.int64)
    counts, bits, layers, micro_batches, squares, hurt, told = _sections(values, num_micro_batches, num_layers)
    ids = np.fromiter(losses, np.int64, len(losses))
    counts[ids] = 1
    bits[ids] = np.fromiter(losses.values(), np.float64, len(losses)).view(np.int64)
    rows = [(micro_batch, *part) for micro_batch, parts in contributions.items() for part in parts]
    ids, starts, stops = np.array(rows, np.int64).reshape(-1, 3).T
    np.add.at(layers, ids, stops - starts)
    edges = np.bincount(starts, minlength=num_layers + 1) - np.bincount(stops, minlength=num_layers + 1)
    micro_batches[:] = np.cumsum(edges)[:num_layers]
    squares[:] = limbs
    hurt[:] = damages
    for shard, digest in digests.items():
        told[shard] = signed(unsigned(digest))
    return torch.from_numpy(values)


def count(total: torch.Tensor, num_micro_batches: int, num_layers: int) -> Vote:
    """Read the sum of all ballots.

    Raises:
        CorruptState: some loss, or the gradient of some layer of some micro-batch, is there not at all or repeatedly.
    """
    values = total.numpy()
    counts, bits, layers, micro_batches, limbs, hurt, told = _sections(values, num_micro_batches, num_layers)
    wrong = [
        *_wrong("losses of micro-batches must be there once each, but (id: times)", counts, 1),
        *_wrong(f"micro-batches must pass {num_layers} layers each, but (id: layers)", layers, num_layers),
        *_wrong(
            f"layers must see {num_micro_batches} micro-batches each, but (layer: micro-batches)",
            micro_batches,
            num_micro_batches,
        ),
    ]
    if wrong:
        raise CorruptState("; ".join(wrong))
    return Vote(
        losses=tuple(bits.copy().view(np.float64).tolist()),
        limbs=tuple(limbs.tolist()),
        digests=tuple(unsigned(digest) for digest in told.tolist()),
        damaged_weights=int(hurt[0]),
        damaged_copies=int(hurt[1]),
    )


def _sections(values: np.ndarray, num_micro_batches: int, num_layers: int) -> list[np.ndarray]:
    """Views: per micro-batch losses, bits of the loss, layers; per layer micro-batches; limbs; damages; digests."""
    layers, limbs = 3 * num_micro_batches, 3 * num_micro_batches + num_layers
    damages = limbs + LIMBS
    bounds = [num_micro_batches, 2 * num_micro_batches, layers, limbs, damages, damages + DAMAGES]
    return np.split(values, bounds)


def _wrong(rule: str, found: np.ndarray, wanted: int) -> list[str]:
    """The rule and where it is broken, if it is."""
    bad = np.flatnonzero(found != wanted)
    return [f"{rule} {dict(zip(bad.tolist(), found[bad].tolist(), strict=True))}"] if len(bad) else []
