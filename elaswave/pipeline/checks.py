"""What a layer must be like so that its sums are exact wherever it is computed; anything else is refused in words."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from elaswave.errors import ConfigError


def refuse(model: object, why: str) -> ConfigError:
    """The error that says why a model cannot be trained, and what to do."""
    return ConfigError("model", type(model).__name__, why)


def check_layer(model: object, name: str, layer: nn.Module) -> None:
    """Flat buffers are float32, every element gets a gradient, and nothing is kept from one micro-batch to the next.

    Args:
        model: that the error names.
        name: of the layer.
        layer: may be on the meta device.

    Raises:
        ConfigError: the first problem, with its remedy.
    """
    for problem in (*_of_parameters(layer), *_of_modules(layer)):
        raise refuse(model, f"{name}{problem}")


def _of_parameters(layer: nn.Module) -> Iterator[str]:
    for name, parameter in layer.named_parameters():
        if is_lazy(parameter):
            yield f".{name} has no shape yet; give its sizes"
        elif parameter.dtype != torch.float32:
            yield f".{name} is {parameter.dtype}; use torch.float32, and autocast to compute in less"
        elif not parameter.requires_grad:
            yield f".{name} is frozen; keep what is not trained in a buffer (register_buffer)"


def _of_modules(layer: nn.Module) -> Iterator[str]:
    for name, module in layer.named_modules():
        path = f".{name}" if name else ""
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield f"{path} draws by call count; use elaswave.models.dropout.KeyedDropout"
        if isinstance(module, _BatchNorm):
            yield f"{path} mixes samples and keeps statistics; use a norm within the sample, as LayerNorm"
