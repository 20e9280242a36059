"""A small GPT as a list of layers: embedding, blocks, head. After GPT-2, with pre-norm blocks."""

from functools import partial

import torch
from torch.nn import functional

from elaswave.config import Model
from elaswave.models.spec import LayerSpec
from elaswave.models.transformer import Block, Embedding, Head, drawn


class GPT:
    """Predicts the next token.

    Args:
        config: its shape; `tied` shares the token embedding with the output.
    """

    def __init__(self, config: Model) -> None:
        self._config = config

    def layers(self) -> list[LayerSpec]:
        """(batch, sequence) int64 -> logits (batch, sequence, vocabulary)."""
        config = self._config
        first, last = ({"token.weight": "token"}, {"logits.weight": "token"}) if config.tied else ({}, {})
        blocks = [
            LayerSpec(partial(drawn, Block, config, number + 1), name=f"blocks.{number}")
            for number in range(config.layers)
        ]
        return [
            LayerSpec(partial(drawn, Embedding, config), ties=first, name="embedding"),
            *blocks,
            LayerSpec(partial(drawn, Head, config), ties=last, name="head"),
        ]

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy summed over all tokens, float32."""
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
