"""The layers of which transformers are made: embedding, pre-norm blocks, head. After GPT-2."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from elaswave.config import Model
from elaswave.models.dropout import KeyedDropout

INIT_STD = 0.02


class Embedding(nn.Module):
    """Tokens and positions to vectors."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.sequence_length, config.width)
        self.dropout = KeyedDropout(config.dropout, layer=0, site=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # (batch, sequence) -> (batch, sequence, width)
        return self.dropout(self.token(tokens) + self.position.weight[: tokens.shape[1]])


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm and added to what came in."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(config.width)
        self.attend = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)
        self.norm_2 = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)
        self.dropout_1 = KeyedDropout(config.dropout, layer=layer, site=0)
        self.dropout_2 = KeyedDropout(config.dropout, layer=layer, site=1)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, sequence, width) -> the same; every position looks at those that are `seen`.

        Args:
            x: activations.
            seen: (batch, sequence) bool; None when each looks at itself and those before.
        """
        x = x + self.dropout_1(self.project(self._attention(self.norm_1(x), seen)))
        return x + self.dropout_2(self.narrow(functional.gelu(self.widen(self.norm_2(x)))))

    def _attention(self, x: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        batch, sequence, width = x.shape
        query, key, value = (
            part.view(batch, sequence, self.heads, width // self.heads).transpose(1, 2)
            for part in self.attend(x).split(width, dim=2)
        )  # each (batch, heads, sequence, width / heads)
        mask = None if seen is None else seen[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return mixed.transpose(1, 2).reshape(batch, sequence, width)


class Head(nn.Module):
    """Vectors to logits."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.logits = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width) -> (batch, sequence, vocabulary)
        return self.logits(self.norm(x))


def drawn(kind: Callable[..., nn.Module], config: Model, *place: int) -> nn.Module:
    """Make a layer with initial weights from torch's global generator, smaller where it adds to the residual."""
    layer = kind(config, *place)
    residual_std = INIT_STD / math.sqrt(2 * config.layers)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                parameter.normal_(0.0, residual_std if name in ("project.weight", "narrow.weight") else INIT_STD)
    return layer
