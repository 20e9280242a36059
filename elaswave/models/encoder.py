"""A small bidirectional encoder that restores masked tokens, after BERT (https://arxiv.org/abs/1810.04805).

Between layers travel activations and, beside them, which positions are seen. The output shares its matrix with the
token embedding.
"""

from functools import partial

import torch
from torch.nn import functional

from elaswave.config import Model
from elaswave.models.spec import LayerSpec
from elaswave.models.transformer import Block, Embedding, Head, drawn

MASK = 0
"""The token that stands for one to be restored: NUL, which no text has."""

Parts = tuple[torch.Tensor, torch.Tensor]
"""Activations (batch, sequence, width), and the positions that are seen, (batch, sequence) bool."""


class MaskedEmbedding(Embedding):
    """Tokens to vectors; those behind the mask are not seen by any position."""

    def forward(self, tokens: torch.Tensor) -> Parts:  # type: ignore[override]  # (batch, sequence)
        return super().forward(tokens), tokens != MASK


class EncoderBlock(Block):
    """A block in which every position looks at all that are seen."""

    def forward(self, parts: Parts) -> Parts:  # type: ignore[override]
        x, seen = parts
        return super().forward(x, seen), seen


class MaskedHead(Head):
    """Logits where tokens are masked; as many in every sample."""

    def forward(self, parts: Parts) -> torch.Tensor:  # type: ignore[override]  # -> (batch, masked, vocabulary)
        x, seen = parts
        return super().forward(x[~seen].view(x.shape[0], -1, x.shape[2]))


class Encoder:
    """Restores masked tokens.

    Args:
        config: its shape.
    """

    def __init__(self, config: Model) -> None:
        self._config = config

    def layers(self) -> list[LayerSpec]:
        """(batch, sequence) int64 -> logits (batch, masked, vocabulary)."""
        config = self._config
        blocks = [
            LayerSpec(partial(drawn, EncoderBlock, config, number + 1), name=f"blocks.{number}")
            for number in range(config.layers)
        ]
        return [
            LayerSpec(partial(drawn, MaskedEmbedding, config), ties={"token.weight": "token"}, name="embedding"),
            *blocks,
            LayerSpec(partial(drawn, MaskedHead, config), ties={"logits.weight": "token"}, name="head"),
        ]

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy summed over all masked tokens, float32."""
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
