"""A model of equal layers, each of which takes a fixed time: workers that outnumber cores compute as if on devices."""

import time
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from elaswave.models.spec import LayerSpec

HEADS = 4


class Blocks:
    """Attention and a feed-forward network per layer; each position predicts the next vector.

    Args:
        layers: how many.
        width: of the vectors; a layer has 12 * width^2 parameters, without biases, so that its shards can be equal.
        layer_s: that a layer's forward takes at least; its backward takes twice that.
    """

    def __init__(self, layers: int, width: int, layer_s: float) -> None:
        self._layers, self._width, self._layer_s = layers, width, layer_s

    def layers(self) -> list[LayerSpec]:
        """(batch, sequence, width) -> the same."""
        return [
            LayerSpec(partial(Block, self._width, self._layer_s), name=f"blocks.{number}")
            for number in range(self._layers)
        ]

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Squared distances, summed over all positions."""
        return functional.mse_loss(output, targets, reduction="sum")


class Vectors:
    """Samples of random vectors, drawn by their number."""

    def __init__(self, sequence_length: int, width: int) -> None:
        self._shape = (sequence_length + 1, width)

    def __len__(self) -> int:
        return 1 << 16

    def sample(self, index: int) -> torch.Tensor:  # (sequence + 1, width)
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(index))

    def identity(self) -> str:
        return f"random vectors {self._shape}"

    def inputs_and_targets(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors and, one further, those that follow; each (batch, sequence, width)."""
        return rows[:, :-1], rows[:, 1:]


class Block(nn.Module):
    """One layer."""

    def __init__(self, width: int, layer_s: float) -> None:
        super().__init__()
        self._layer_s = layer_s
        self.attend = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.widen = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width) -> the same
        clock = _Clock(self._layer_s)
        clock.begin()
        x = _First.apply(x, clock)
        batch, sequence, width = x.shape
        query, key, value = (
            part.view(batch, sequence, HEADS, width // HEADS).transpose(1, 2)
            for part in self.attend(functional.layer_norm(x, (width,))).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, sequence, width))
        x = x + self.narrow(functional.gelu(self.widen(functional.layer_norm(x, (width,)))))
        return _Last.apply(x, clock)


class _Clock:
    """Lets a layer's pass take its time."""

    def __init__(self, layer_s: float) -> None:
        self._layer_s, self._began_s = layer_s, 0.0

    def begin(self) -> None:
        self._began_s = time.monotonic()

    def end(self, times: int) -> None:
        """Sleep until the pass has taken so many times what a forward takes."""
        left_s = self._began_s + times * self._layer_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)


class _First(torch.autograd.Function):
    """What goes into a layer: where its backward ends."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: _Clock) -> torch.Tensor:
        ctx.clock = clock
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        ctx.clock.end(2)
        return gradients[0], None


class _Last(torch.autograd.Function):
    """What comes out of a layer: where its forward ends and its backward begins."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: _Clock) -> torch.Tensor:
        ctx.clock = clock
        clock.end(1)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        ctx.clock.begin()
        return gradients[0], None
