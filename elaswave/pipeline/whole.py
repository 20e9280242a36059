"""All layers of a model as one module, for programs that know nothing of layers."""

from typing import Any

import torch
from torch import nn

from elaswave.pipeline.layers import Layers


class Whole(nn.Module):
    """Every layer, computed in order; a weight that several layers share is one parameter.

    Args:
        layers: of the model; they are built here.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self._loss_sum = layers.loss_sum
        self.stack = nn.ModuleList([layers.build(number) for number in range(layers.num_layers)])
        for weight in layers.table.parameters:
            (first, name), *others = weight.uses
            parameter = self.stack[first].get_parameter(name)
            for number, other in others:
                _replace(self.stack[number], self.stack[number].get_parameter(other), parameter)

    def layers(self) -> list[nn.Module]:
        """In the order in which they are computed."""
        return list(self.stack)

    def forward(self, x: Any) -> Any:
        """Input of the first layer -> output of the last."""
        for layer in self.stack:
            x = layer(x)
        return x

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of everything, not averaged."""
        return self._loss_sum(output, targets)


def _replace(layer: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter wherever another is."""
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is old:
                module.register_parameter(name, new)
