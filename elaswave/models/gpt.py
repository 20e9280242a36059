"""A small GPT as a list of layers: embedding, blocks, head. After GPT-2, with pre-norm blocks.

Every layer draws its weights from a generator of its own, so that a worker which builds one layer gets the bits that
any other gets.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from elaswave.config import Model
from elaswave.models.dropout import KeyedDropout

INIT_STD = 0.02
_SEED_MASK = (1 << 63) - 1


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width)
        x = x + self.dropout_1(self.project(self._attention(self.norm_1(x))))
        return x + self.dropout_2(self.narrow(functional.gelu(self.widen(self.norm_2(x)))))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, sequence, width = x.shape
        query, key, value = (
            part.view(batch, sequence, self.heads, width // self.heads).transpose(1, 2)
            for part in self.attend(x).split(width, dim=2)
        )  # each (batch, heads, sequence, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, sequence, width)


class Head(nn.Module):
    """Vectors to logits."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.logits = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width) -> (batch, sequence, vocabulary)
        return self.logits(self.norm(x))


class GPT(nn.Module):
    """The whole model.

    Args:
        config: its shape.
        seed: of its initial weights.
    """

    def __init__(self, config: Model, seed: int) -> None:
        super().__init__()
        blocks = [Block(config, layer=i + 1) for i in range(config.layers)]
        self.stack = nn.ModuleList([Embedding(config), *blocks, Head(config)])
        for number, layer in enumerate(self.stack):
            initialise(layer, seed, number, residual_std=INIT_STD / math.sqrt(2 * config.layers))

    def layers(self) -> list[nn.Module]:
        """In the order in which they are computed; every parameter belongs to exactly one."""
        return list(self.stack)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, sequence) int64 -> logits (batch, sequence, vocabulary)."""
        x = tokens
        for layer in self.stack:
            x = layer(x)
        return x

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy summed over all tokens, float32."""
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def initialise(layer: nn.Module, seed: int, number: int, residual_std: float) -> None:
    """Fill a layer's parameters from (seed, number of the layer) alone."""
    generator = torch.Generator().manual_seed(((seed << 20) ^ number) & _SEED_MASK)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                residual = name in ("project.weight", "narrow.weight")
                parameter.normal_(0.0, residual_std if residual else INIT_STD, generator=generator)
