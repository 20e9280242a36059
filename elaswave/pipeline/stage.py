"""The layers one worker computes, with parameters and gradients as flat buffers. In this layout: all layers."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from elaswave.errors import ConfigError, NumericsError
from elaswave.memory import allocate

Batch = tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]
"""Inputs (batch, sequence), targets (batch, sequence), sample ids."""


class Accumulator(Protocol):
    """Where gradients are summed; see `elaswave.numerics`."""

    buffer: torch.Tensor

    def zero(self) -> None: ...

    def add(self, gradient: torch.Tensor, micro_batch: int) -> None: ...

    def to_float(self, part: torch.Tensor) -> torch.Tensor: ...


class Streams(Protocol):
    """Where random draws come from; see `elaswave.rng`."""

    def at(self, step: int, samples: Sequence[int]) -> None: ...


class Trainable(Protocol):
    """What a model must offer beside being called: its layers, and the sum of the losses of all tokens."""

    def layers(self) -> list[nn.Module]: ...

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...


class Stage:
    """Forward and backward of micro-batches.

    All flat orders are: layers in order, within a layer parameters in the order of `named_parameters`.

    Attributes:
        flat: two buffers of all parameters, float32; the model computes with one while the next version arrives in
            the other.
        active: index of the buffer that the model computes with.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        make_accumulator: Callable[[int], Accumulator],
        streams: Streams,
        batch: Callable[[int, int], Batch],
        tokens_per_step: int,
    ) -> None:
        """
        Args:
            model: has `layers()` and `loss_sum(output, targets)`.
            make_accumulator: number of elements -> where gradients are summed.
            streams: told which samples are being computed.
            batch: (step, micro-batch id) -> inputs, targets and sample ids.
            tokens_per_step: of the global batch; losses and gradients are divided by it.

        Raises:
            ConfigError: the model cannot be trained in this way; the message says why and what to do.
        """
        self._model, self._streams, self._batch, self.tokens_per_step = model.train(), streams, batch, tokens_per_step
        self._trainable: Trainable = model  # type: ignore[assignment]
        self._layers = [list(layer.parameters()) for layer in self._trainable.layers()]
        self._parameters = [parameter for layer in self._layers for parameter in layer]
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        _check_owners(model, self._parameters)
        _check_trainable(model)
        _check_stateless(model)
        self.num_elements = sum(parameter.numel() for parameter in self._parameters)
        self.accumulator = make_accumulator(self.num_elements)
        self._gradient = torch.empty(self.num_elements)
        self.flat = [allocate(self.num_elements, torch.float32) for _ in range(2)]
        self.active = 0
        torch.cat([parameter.detach().reshape(-1).float() for parameter in self._parameters], out=self.flat[0])
        self._views = [self._views_of(buffer) for buffer in self.flat]
        self.flip(0)
        self._loss: torch.Tensor | None = None

    def _views_of(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        parts = buffer.split([parameter.numel() for parameter in self._parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]

    def flip(self, slot: int) -> None:
        """Compute with the parameters in buffer `slot`."""
        self.active = slot
        for parameter, view in zip(self._parameters, self._views[slot], strict=True):
            parameter.data = view

    def layer_sizes(self) -> tuple[int, ...]:
        """Elements of each layer."""
        return tuple(sum(parameter.numel() for parameter in layer) for layer in self._layers)

    def named_spans(self) -> tuple[tuple[str, int, int], ...]:
        """For each parameter its name and (start, stop) in flat order."""
        names = [self._names[id(parameter)] for parameter in self._parameters]
        return tuple((name, start, stop) for name, (start, stop, _) in zip(names, self.decay_spans(), strict=True))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each parameter by its name."""
        return {self._names[id(parameter)]: tuple(parameter.shape) for parameter in self._parameters}

    def decay_spans(self) -> tuple[tuple[int, int, bool], ...]:
        """For each parameter its (start, stop) in flat order, and whether it is decayed: matrices are."""
        spans, start = [], 0
        for parameter in self._parameters:
            spans.append((start, start + parameter.numel(), parameter.dim() >= 2))
            start += parameter.numel()
        return tuple(spans)

    def begin(self) -> None:
        """Forget all gradients."""
        self.accumulator.zero()
        self._loss = None

    def forward(self, step: int, micro_batch: int) -> float:
        """Compute a micro-batch; returns its part of the mean loss per token.

        Raises:
            ConfigError: the model drew from torch's global generator.
        """
        inputs, targets, samples = self._batch(step, micro_batch)
        self._streams.at(step, samples)
        before = torch.get_rng_state()
        self._loss = self._trainable.loss_sum(self._model(inputs), targets) / self.tokens_per_step
        if not torch.equal(before, torch.get_rng_state()):
            raise _refuse(self._model, "it draws by call count; use elaswave.models.dropout.KeyedDropout")
        return float(self._loss.item())

    def backward(self, micro_batch: int) -> None:
        """Add the gradient of the micro-batch that was computed last.

        Raises:
            NumericsError: it is too large for exact sums; names the parameter, the micro-batch and the value.
        """
        assert self._loss is not None, "forward() comes first"
        gradients = torch.autograd.grad(self._loss, self._parameters, materialize_grads=True)
        self._loss = None
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._gradient)
        try:
            self.accumulator.add(self._gradient, micro_batch)
        except NumericsError as error:
            raise NumericsError(f"{self._largest(gradients)}: {error}") from error

    def _largest(self, gradients: Sequence[torch.Tensor]) -> str:
        """Name of the first parameter whose gradient is not a number, or else of the one with the largest."""
        peaks = torch.stack([functional.pad(gradient.abs().flatten(), (0, 1)).amax() for gradient in gradients])
        return self._names[id(self._parameters[int(peaks.nan_to_num(nan=torch.inf).argmax())])]


def _check_trainable(model: nn.Module) -> None:
    """Flat buffers are float32, and every element of them gets a gradient."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise _refuse(model, f"{name} is {parameter.dtype}; use torch.float32, and autocast to compute in less")
        if not parameter.requires_grad:
            raise _refuse(model, f"{name} is frozen; keep what is not trained in a buffer (register_buffer)")


def _check_stateless(model: nn.Module) -> None:
    """What a micro-batch computes depends on parameters and keyed draws only, not on what was computed before."""
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise _refuse(model, f"{name} draws by call count; use elaswave.models.dropout.KeyedDropout")
        if isinstance(module, _BatchNorm):
            raise _refuse(
                model, f"{name} mixes samples and keeps statistics; use a norm within the sample, as LayerNorm"
            )


def _check_owners(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Every parameter of the model belongs to exactly one layer."""
    owned = [id(parameter) for parameter in parameters]
    if len(set(owned)) != len(owned):
        raise _refuse(model, "a parameter belongs to two layers; give each use a parameter of its own")
    missing = [name for name, parameter in model.named_parameters() if id(parameter) not in set(owned)]
    if missing:
        raise _refuse(model, f"parameters {missing} belong to no layer of layers()")


def _refuse(model: nn.Module, why: str) -> ConfigError:
    return ConfigError("model", type(model).__name__, why)
