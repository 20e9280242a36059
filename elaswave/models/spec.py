"""What a model offers: its layers, which are made where they are needed, and its loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from elaswave.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a model that is computed layer after layer.

    Args:
        build: makes the layer anew at each call. Its initial values may be constants and draws from torch's global
            generator, which is seeded per layer, so that every worker gets the same bits.
        ties: parameter name inside the layer -> key of a weight that several layers share. The first layer that names
            a key gives the initial value.
        name: of the layer, before the names of its parameters; its number when empty.
        cost: of a forward, in the unit in which costs are estimated: elements of the matrices that the layer
            multiplies with, or multiplications per row. When every layer gives one, any unit will do. None: estimated.

    Raises:
        ConfigError: the cost is not a positive number, or `build` is a layer instead of what makes one.
    """

    build: Callable[[], nn.Module]
    ties: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    name: str = field(default="", kw_only=True)
    cost: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.build, nn.Module):
            raise ConfigError("LayerSpec.build", type(self.build).__name__, "give what makes the layer: lambda: layer")
        if self.cost is not None and not (math.isfinite(self.cost) and self.cost > 0):
            raise ConfigError("LayerSpec.cost", self.cost, "use a positive number, or None to have it estimated")


class LayeredModel(Protocol):
    """A model that is computed layer after layer."""

    def layers(self) -> Sequence[nn.Module | LayerSpec]:
        """Each takes what the one before returns: a tensor, or a tuple of tensors."""
        ...

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor, /) -> torch.Tensor:
        """Of everything, not averaged."""
        ...
