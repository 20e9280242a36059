"""The layers that one worker holds, and how it computes them: a micro-batch's way through some of them, and back.

A micro-batch is always computed alone, so that its bits do not depend on who computes what. Backward comes in two
halves: gradients of inputs, which the neighbour waits for, and gradients of weights, which can be put off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from elaswave.errors import ConfigError
from elaswave.pipeline.buckets import Buckets, Key
from elaswave.pipeline.gradients import Accumulator, Gradients, Range, within
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.sink import Sums, Target
from elaswave.pipeline.split import Deferred, backward, split_linears
from elaswave.pipeline.weights import Weights

Tensors = tuple[torch.Tensor, ...]


class Streams(Protocol):
    """Where random draws come from; see `elaswave.rng`."""

    def at(self, step: int, samples: Sequence[int]) -> None: ...


class Source(Protocol):
    """Where micro-batches come from; see `elaswave.runtime.build`."""

    def ids(self, step: int, micro_batch: int) -> tuple[int, ...]:
        """Samples of a micro-batch."""
        ...

    def batch(self, ids: Sequence[int]) -> tuple[Any, torch.Tensor]:
        """Inputs and targets of these samples."""
        ...


@dataclass(slots=True, kw_only=True)
class Pass:
    """A leg under way: computed forward, not yet all the way back.

    Attributes:
        inputs: what came in, detached; those that take a gradient require one.
        outputs: what went out, or the loss.
        missing: ranges of layers whose gradient is wanted.
        found: gradients of parameters that are here already, by parameter.
        deferred: products that were put off.
    """

    inputs: Tensors
    outputs: Tensors
    missing: tuple[Range, ...]
    found: dict[torch.Tensor, torch.Tensor] = field(default_factory=dict)
    deferred: Deferred = field(default_factory=Deferred)


class Stage:
    """What a worker holds of the model in one layout.

    Attributes:
        layers: of the whole model.
        held: numbers of the layers that are here, ascending.
        weights: that it computes with.
        gradients: that it has added up.
        tokens_per_step: of the global batch; losses and gradients are divided by it.
    """

    def __init__(
        self,
        layers: Layers,
        source: Source,
        streams: Streams,
        *,
        make_accumulator: Callable[[int], Accumulator],
        connect: Callable[[nn.Module], None],
        dtype: torch.dtype,
        tokens_per_step: int,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            layers: of the whole model.
            source: of micro-batches.
            streams: told which samples are being computed.
            make_accumulator: number of elements -> where gradients are summed.
            connect: lets the dropouts of a layer draw from `streams`.
            dtype: of weights and activations.
            tokens_per_step: of the global batch.
            checkpointing: compute activations a second time on the way back instead of keeping them.
        """
        self.layers, self._source, self._streams, self._connect = layers, source, streams, connect
        self._dtype, self._checkpointing, self.tokens_per_step = dtype, checkpointing, tokens_per_step
        empty = Buckets(layers.table, ())
        self.held: tuple[int, ...] = ()
        self.weights = Weights(empty, dtype)
        self.gradients = Gradients(empty, make_accumulator)
        self._modules: dict[int, nn.Module] = {}
        self._parameters: dict[int, list[tuple[nn.Parameter, int]]] = {}
        self._buffers: dict[int, list[torch.Tensor]] = {}
        self._passes: dict[tuple[int, int], Pass] = {}
        self._targets = lru_cache(maxsize=256)(self._targets_of)

    # -- what is held ------------------------------------------------------------------------------------------

    def hold(self, held: Sequence[int], keys: Sequence[Key], version: int) -> None:
        """Hold these layers from now on; their weights may still be missing afterwards.

        Args:
            held: numbers of layers.
            keys: units of each bucket that this worker holds.
            version: of the weights that are kept where they are here already.
        """
        self._passes = {}
        if self.held == tuple(held) and self.weights.buckets.keys == tuple(keys):
            return
        buckets = Buckets(self.layers.table, keys)
        self.weights = Weights.carried_over(self.weights, buckets, version)
        self.gradients.hold(buckets)
        for number in [number for number in self._modules if number not in held]:
            del self._modules[number], self._parameters[number], self._buffers[number]
        for number in held:
            if number not in self._modules:
                self._add(number)
        self.held = tuple(held)
        self._targets.cache_clear()
        self._bind()

    def _add(self, number: int) -> None:
        module = self.layers.build(number).train().to(self._dtype)
        split_linears(module)
        self._connect(module)
        named = dict(module.named_parameters())
        self._parameters[number] = [(named[name], index) for name, index in self.layers.table.of_layer(number)]
        self._buffers[number] = list(module.buffers())
        self._modules[number] = module

    def _bind(self) -> None:
        for parameters in self._parameters.values():
            for parameter, index in parameters:
                values = self.weights.parameter(index, self.weights.active)
                if values is not None:
                    parameter.data = values

    def select(self, version: int) -> None:
        """Compute with the weights of a version that is here."""
        self.weights.active = self.weights.slot_of(version)
        self._bind()

    def drop_passes(self) -> None:
        """Forget what is under way."""
        self._passes = {}

    def samples(self, step: int, micro_batch: int) -> tuple[int, ...]:
        """Samples of a micro-batch, in order."""
        return self._source.ids(step, micro_batch)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(
        self,
        step: int,
        micro_batch: int,
        start: int,
        stop: int,
        received: Tensors,
        takes_gradient: Sequence[bool],
        missing: tuple[Range, ...],
    ) -> Tensors:
        """Compute layers [start, stop) of a micro-batch.

        Args:
            received: activations; ignored for the first layer, which gets the samples.
            takes_gradient: which of them take one.
            missing: ranges of layers of the whole model whose gradient of this micro-batch is wanted.

        Returns:
            Activations for the next leg; after the last layer the micro-batch's part of the mean loss per token.

        Raises:
            ConfigError: a layer drew from torch's global generator, changed what the next micro-batch finds, or gave
                what cannot travel.
        """
        ids = self._source.ids(step, micro_batch)
        self._streams.at(step, ids)
        wanted = any(low < stop for low, _ in missing)
        last = stop == self.layers.num_layers
        inputs, targets = self._source.batch(ids) if start == 0 or last else ((), torch.empty(0))
        incoming = (
            self._cast(inputs)
            if start == 0
            else tuple(
                tensor.requires_grad_(flag and wanted) for tensor, flag in zip(received, takes_gradient, strict=True)
            )
        )
        before, buffers = torch.get_rng_state(), [buffer for n in range(start, stop) for buffer in self._buffers[n]]
        changes = [buffer._version for buffer in buffers]
        with torch.set_grad_enabled(wanted):
            outputs = self._compute(start, stop, incoming)
            if last:
                outputs = (self.layers.loss_sum(_one(outputs), targets) / self.tokens_per_step,)
        if not torch.equal(before, torch.get_rng_state()):
            raise ConfigError(
                "model", f"layers {start}-{stop - 1}", "draw by call count; use elaswave.models.dropout.KeyedDropout"
            )
        if [buffer._version for buffer in buffers] != changes:
            raise ConfigError(
                "model", f"layers {start}-{stop - 1}", "change buffers; keep nothing from one micro-batch to the next"
            )
        if wanted:
            self._passes[micro_batch, start] = Pass(inputs=incoming, outputs=outputs, missing=missing)
        return outputs

    def _cast(self, inputs: Any) -> Tensors:
        return tuple(x.to(self._dtype) if x.is_floating_point() else x for x in _many(inputs))

    def _compute(self, start: int, stop: int, incoming: Tensors) -> Tensors:
        x = _one(incoming)
        for number in range(start, stop):
            module = self._modules[number]
            if self._checkpointing and torch.is_grad_enabled():
                x = checkpoint(module, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = module(x)
        return _many(x)

    # -- backward ----------------------------------------------------------------------------------------------

    def backward_input(
        self,
        step: int,
        micro_batch: int,
        start: int,
        stop: int,
        gradients: Sequence[torch.Tensor | None],
        *,
        at_once: bool = False,
    ) -> Tensors:
        """The first half: what the leg before waits for.

        Args:
            gradients: of those outputs that take one, in order; ignored after the last layer.
            at_once: put nothing off, but add it to the sums; `backward_weight` must follow whatever happens.

        Returns:
            Gradients of those inputs that take one, in order.

        Raises:
            NumericsError: as `backward_weight`, when nothing is put off.
        """
        one = self._passes[micro_batch, start]
        if self._checkpointing:
            self._streams.at(step, self._source.ids(step, micro_batch))
        last = stop == self.layers.num_layers
        outputs = [x for x in one.outputs if x.requires_grad]
        inputs = [x for x in one.inputs if x.requires_grad]
        parameters = [p for number in within(one.missing, start, stop) for p, _ in self._parameters[number]]
        if not outputs or not (inputs or parameters):
            return tuple(torch.zeros_like(x) for x in inputs)
        if at_once:
            one.deferred = Deferred(self._sums(micro_batch, start, stop, one.missing))
        found = backward(outputs, None if last else gradients, [*inputs, *parameters], one.deferred)
        for parameter, gradient in zip(parameters, found[len(inputs) :], strict=True):
            if gradient is not None:
                one.found[parameter] = gradient
        one.inputs = one.outputs = ()
        return tuple(
            torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, found, strict=False)
        )

    def backward_weight(self, micro_batch: int, start: int, stop: int) -> None:
        """The second half: add the gradients of the weights to the sums.

        Raises:
            NumericsError: one is too large for exact sums; names the parameter, the micro-batch and the value.
        """
        one = self._passes.pop((micro_batch, start))
        sums = self._sums(micro_batch, start, stop, one.missing)
        one.deferred.compute(sums)
        for parameter, gradient in one.found.items():
            sums.add(parameter, gradient)
        self.gradients.record(micro_batch, within(one.missing, start, stop))

    def _sums(self, micro_batch: int, start: int, stop: int, missing: tuple[Range, ...]) -> Sums:
        return Sums(self.gradients.sums, self._targets(start, stop, missing), micro_batch)

    def _targets_of(self, start: int, stop: int, missing: tuple[Range, ...]) -> dict[torch.Tensor, Target]:
        """Where the gradients of the missing layers of a leg go."""
        table, buckets = self.layers.table, self.weights.buckets
        return {
            parameter: Target(table.parameters[index].name, buckets.of_parameter(index))
            for number in within(missing, start, stop)
            for parameter, index in self._parameters[number]
        }

    def finish(self, micro_batch: int, start: int) -> None:
        """End a pass of which no gradient of weights is wanted."""
        self._passes.pop((micro_batch, start), None)


def _many(x: Any) -> Tensors:
    """Activations as a tuple of tensors."""
    parts = tuple(x) if isinstance(x, tuple | list) else (x,)
    if not all(isinstance(part, torch.Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ConfigError("model", kinds, "a layer must give a tensor or a tuple of tensors to the next")
    return parts


def _one(parts: Tensors) -> Any:
    """What a layer is called with: the tensor itself when there is only one, as nn.Sequential does."""
    return parts[0] if len(parts) == 1 else parts
