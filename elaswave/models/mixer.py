"""An MLP-Mixer for small grey images (https://arxiv.org/abs/2105.01601): patches, mixing blocks, mean pool, classes."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from elaswave.config import Model
from elaswave.models.dropout import KeyedDropout
from elaswave.models.shape import check_image
from elaswave.models.spec import LayerSpec


class Patches(nn.Module):
    """Grey values to one vector per patch."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.patch, self.side, self.white = config.patch, math.isqrt(config.sequence_length), config.vocabulary - 1
        self.embed = nn.Linear(config.patch**2, config.width)
        self.dropout = KeyedDropout(config.dropout, layer=0, site=0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # (batch, side * side) -> (batch, patches, width)
        size, count = self.patch, self.side // self.patch
        rows = pixels.view(-1, count, size, count, size).transpose(2, 3).reshape(-1, count**2, size**2)
        return self.dropout(self.embed((rows.float() / self.white - 0.5).to(self.embed.weight.dtype)))


class Mixing(nn.Module):
    """One network over the patches of each channel, one over the channels of each patch, each added to what came in."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.over_patches = _network(num_patches(config), 2 * num_patches(config))
        self.over_channels = _network(config.width, 4 * config.width)
        self.dropout_1 = KeyedDropout(config.dropout, layer=layer, site=0)
        self.dropout_2 = KeyedDropout(config.dropout, layer=layer, site=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, patches, width)
        x = x + self.dropout_1(self.over_patches(self.norm_1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.dropout_2(self.over_channels(self.norm_2(x)))


class Pool(nn.Module):
    """The mean over all patches to logits."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(config.width), nn.Linear(config.width, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, patches, width) -> (batch, classes)
        return self.logits(self.norm(x).mean(1))


class Mixer:
    """Tells classes of images.

    Args:
        config: its shape. An image has `sequence_length` pixels, each a grey value below `vocabulary`.

    Raises:
        ConfigError: the image is no square of patches.
    """

    def __init__(self, config: Model) -> None:
        self._config = config
        check_image(config)

    def layers(self) -> list[LayerSpec]:
        """(batch, pixels) int64 -> logits (batch, classes). Costs are multiplications per image."""
        config, patches, width = self._config, num_patches(self._config), self._config.width
        mixing = 4 * width * patches**2 + 8 * patches * width**2
        return [
            LayerSpec(partial(Patches, config), name="patches", cost=config.sequence_length * width),
            *(
                LayerSpec(partial(Mixing, config, number + 1), name=f"blocks.{number}", cost=mixing)
                for number in range(config.layers)
            ),
            LayerSpec(partial(Pool, config), name="pool", cost=width * (config.classes + patches)),
        ]

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy summed over all images, float32."""
        return functional.cross_entropy(logits.float(), targets.flatten(), reduction="sum")


def num_patches(config: Model) -> int:
    return config.sequence_length // config.patch**2


def _network(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
