"""Dropout whose mask is drawn elsewhere: the module says where it sits, and gets the bits for exactly that place."""

from typing import Any, Protocol

import torch
from torch import nn


class MaskSource(Protocol):
    """Draws masks that depend on (seed, step, sample, layer, site) and the element, never on rank or call count."""

    def mask(self, layer: int, site: int, shape: tuple[int, ...], keep: float) -> torch.Tensor:
        """Bool mask of `shape`, true with probability `keep`; dimension 0 runs over the samples."""
        ...


class KeyedDropout(nn.Module):
    """Zero activations with probability `rate`, and scale the others by 1 / (1 - rate).

    Attributes:
        layer, site: where this module sits in the model.
        streams: where masks come from; without one, and in evaluation, this is the identity.
    """

    def __init__(self, rate: float, layer: int, site: int) -> None:
        super().__init__()
        self.rate, self.layer, self.site = rate, layer, site
        self.streams: MaskSource | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, ...)
        if self.rate == 0.0 or not self.training or self.streams is None:
            return x
        keep = 1.0 - self.rate
        mask = self.streams.mask(self.layer, self.site, tuple(x.shape), keep)
        return _Masked.apply(x, mask.to(x.device), 1.0 / keep)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return x * mask * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return gradient * mask * ctx.scale, None, None


def connect(model: nn.Module, streams: MaskSource | None) -> None:
    """Let every dropout of `model` draw from `streams`."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.streams = streams
