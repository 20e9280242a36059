"""Backward in two halves: gradients of inputs at once, those of the linear weights when there is time.

Zero-bubble pipelines (https://arxiv.org/abs/2401.10241) put the weight half into what would be bubbles. A schedule
that does not split computes the second half right after the first: the same products in the same order, so that no
schedule changes a bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class _Product:
    """What the gradient of one use of a linear layer is made of."""

    layer: nn.Linear
    inputs: torch.Tensor
    gradient: torch.Tensor


class Sink(Protocol):
    """Takes the gradients of weights, one after the other."""

    def add(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """A gradient, or a part of one, in the parameter's shape."""
        ...

    def add_product(self, parameter: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """The gradient `rows.t() @ columns`."""
        ...


class Deferred:
    """Products that have been put off; holds their inputs until they are computed.

    Args:
        sink: takes each product as soon as it is put, while its inputs are in the cache: nothing is put off.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self._products: list[_Product] = []

    def put(self, product: _Product) -> None:
        if self._sink is None:
            self._products.append(product)
        else:
            _compute(product, self._sink)

    def __len__(self) -> int:
        return len(self._products)

    @torch.no_grad()
    def compute(self, sink: Sink) -> None:
        """Compute all that was put off, in the order of the backward; afterwards nothing is held."""
        while self._products:
            _compute(self._products.pop(0), sink)


_active: Deferred | None = None
"""Where backward puts weight gradients off to; backward on CPU runs in the thread that calls it."""


def split_linears(model: nn.Module) -> int:
    """Let every plain `nn.Linear` of a model take part; returns how many there are.

    Weights that are used otherwise, such as by `functional.linear`, get their gradients at once.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    return len(layers)


def backward(
    outputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None] | None,
    wanted: Sequence[torch.Tensor],
    deferred: Deferred,
) -> list[torch.Tensor | None]:
    """The first half: gradients of `wanted` tensors, without the products that are put off.

    Args:
        outputs: what was computed.
        gradients: of the outputs; None when there is one, and it is one number.
        wanted: inputs and parameters.
        deferred: takes what is put off.

    Returns:
        One gradient per wanted tensor; None where nothing but products leads to it.
    """
    global _active
    before, _active = _active, deferred
    try:
        return list(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
    finally:
        _active = before


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return _Linear.apply(layer, inputs, layer.weight, layer.bias)


def _compute(product: _Product, sink: Sink) -> None:
    layer, rows, columns = product.layer, _rows(product.gradient), _rows(product.inputs)
    sink.add_product(layer.weight, rows, columns)
    if layer.bias is not None:
        sink.add(layer.bias, rows.sum(0).to(layer.bias.dtype))


def _gradients(
    layer: nn.Linear, inputs: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of weight and bias, in their own dtype."""
    rows, columns = _rows(gradient), _rows(inputs)
    bias = None if layer.bias is None else rows.sum(0).to(layer.bias.dtype)
    return (rows.t() @ columns).to(layer.weight.dtype), bias


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


class _Linear(torch.autograd.Function):
    """`functional.linear` whose backward can leave the weight out."""

    @staticmethod
    def forward(
        ctx: Any, layer: nn.Linear, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.layer, ctx.inputs_dtype = layer, inputs.dtype
        if torch.is_autocast_enabled(inputs.device.type):
            dtype = torch.get_autocast_dtype(inputs.device.type)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(inputs, weight)
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        towards = (gradient @ weight).to(ctx.inputs_dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[2]:
            return None, towards, None, None
        if _active is not None and ctx.layer.weight.requires_grad:
            _active.put(_Product(ctx.layer, inputs, gradient))
            return None, towards, None, None
        return None, towards, *_gradients(ctx.layer, inputs, gradient)
