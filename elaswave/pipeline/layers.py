"""A model as a list of layers, computed one after another; any worker builds any of them, with the same bits.

What a layer is made of is known without making it: layers are built on torch's meta device, which has shapes only.
"""

import copy
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from elaswave.errors import ConfigError
from elaswave.models.shape import SMALL_SHARE
from elaswave.models.spec import LayerSpec
from elaswave.pipeline.checks import check_layer, refuse
from elaswave.pipeline.table import Slot, Table, tabulate

LossSum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Output of the last layer and targets -> the sum of the losses."""


class Layers:
    """The layers of a model.

    Args:
        model: an object with `layers()`, which lists modules or LayerSpecs, and `loss_sum(output, targets)`; or the
            list itself, an `nn.Sequential` too, with `loss`. A parameter or module that occurs in several listed
            modules is one weight with several uses. Listed modules are left as they are: what is built is a copy.
        seed: of the initial values of LayerSpecs.
        loss: summed over everything, not averaged; in place of the model's `loss_sum`.

    Attributes:
        num_layers: L.
        names: of the layers.
        table: every parameter with its place.
        loss_sum: (output, targets) -> sum of the losses.

    Raises:
        ConfigError: the model cannot be trained layer by layer; the message says why and what to do.
    """

    def __init__(self, model: object, *, seed: int, loss: LossSum | None = None) -> None:
        self._model, self._seed = model, seed
        self._entries = _listed(model)
        self.loss_sum = loss or _loss_of(model)
        self.num_layers = len(self._entries)
        self.names = tuple(_name(entry) or str(number) for number, entry in enumerate(self._entries))
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise refuse(model, f"layers have the same name {twice[0]!r}; give each a name of its own")
        skeletons = [self._skeleton(number) for number in range(self.num_layers)]
        self._products = tuple(_elements_multiplied(skeleton) for skeleton in skeletons)
        slots = [self._slots(number, skeleton) for number, skeleton in enumerate(skeletons)]
        self._measured: tuple[float, ...] | None = None
        _check_owned(model, skeletons)
        try:
            self.table: Table = tabulate(slots, self.names)
        except ValueError as error:
            raise refuse(model, str(error)) from error

    def build(self, number: int) -> nn.Module:
        """Layer `number` with its initial values, on the CPU, in training mode.

        Shared weights have their initial values too, in a parameter of this layer's own, so that each use has a
        gradient of its own. Every call makes a new module.
        """
        module = self._make(number)
        own = dict(module.named_parameters())
        for first, pairs in self._defined_elsewhere(number).items():
            source = dict(self._make(first).named_parameters())
            for name, name_there in pairs:
                own[name].data.copy_(source[name_there].data)
        return module

    def initial(self, unit: int) -> torch.Tensor:
        """Initial values of a unit, flat float32; builds the layer that defines it."""
        parameters = self.table.of_unit(unit)
        if not parameters:
            return torch.empty(0)
        values = dict(self._make(parameters[0].uses[0][0]).named_parameters())
        return torch.cat([values[parameter.uses[0][1]].detach().reshape(-1) for parameter in parameters])

    def weigh(self, costs: Sequence[float]) -> None:
        """Go by these costs of the layers' forwards from now on, such as measured ones; the same on every worker.

        Raises:
            ValueError: there is not one for each layer.
        """
        if len(costs) != self.num_layers:
            raise ValueError(f"{len(costs)} costs for {self.num_layers} layers")
        self._measured = tuple(costs)

    def profile(self) -> tuple[tuple[float, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Costs of the layers' forwards, elements of the units, and users of the units.

        A cost is estimated as the elements of the matrices that a layer multiplies with, its parameters of two or more
        dimensions beside the tables of embeddings, and a small share of the largest, so that none is zero.
        """
        if self._measured is not None:
            return self._measured, self.table.unit_sizes(), self.table.users
        small = SMALL_SHARE * max(self._products) or 1.0
        given = [entry.cost if isinstance(entry, LayerSpec) else None for entry in self._entries]
        costs = tuple(
            elements + small if cost is None else float(cost)
            for elements, cost in zip(self._products, given, strict=True)
        )
        return costs, self.table.unit_sizes(), self.table.users

    def _defined_elsewhere(self, number: int) -> Mapping[int, list[tuple[str, str]]]:
        """Of shared weights that an earlier layer defines: that layer -> (name in this one, name in that one)."""
        found: dict[int, list[tuple[str, str]]] = {}
        for name, index in self.table.of_layer(number):
            first, name_there = self.table.parameters[index].uses[0]
            if first != number:
                found.setdefault(first, []).append((name, name_there))
        return found

    def _make(self, number: int) -> nn.Module:
        """Layer `number` with the initial values it would have if it shared nothing."""
        module = self._real(number)
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
        known = tuple((name, self.table.parameters[index].shape) for name, index in self.table.of_layer(number))
        if shapes != known:
            raise refuse(self._model, f"layer {self.names[number]} was built with other parameters than before")
        return module.train()

    def _real(self, number: int) -> nn.Module:
        entry = self._entries[number]
        if isinstance(entry, LayerSpec):
            with _seeded(self._seed, number):
                module = self._built(number, entry)
            if any(parameter.is_meta for parameter in module.parameters()):
                raise self._not_anew(number)
            return module
        try:
            return copy.deepcopy(entry).cpu()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            why = f"layer {self.names[number]} cannot be copied: {error}; list a LayerSpec that makes it"
            raise refuse(self._model, why) from error

    def _skeleton(self, number: int) -> nn.Module:
        """Layer `number` with the shapes it will have, if possible without memory behind them."""
        entry = self._entries[number]
        module = entry if isinstance(entry, nn.Module) else self._shapes_of(number, entry)
        check_layer(self._model, self.names[number], module)
        return module

    def _shapes_of(self, number: int, spec: LayerSpec) -> nn.Module:
        try:
            with _seeded(self._seed, number), torch.device("meta"):
                module = self._built(number, spec)
        except Exception:  # whatever it is that cannot be done without values
            module = self._real(number)
        if any(not parameter.is_meta for parameter in module.parameters()):
            again = self._real(number)
            if {id(parameter) for parameter in again.parameters()} & {
                id(parameter) for parameter in module.parameters()
            }:
                raise self._not_anew(number)
        return module

    def _not_anew(self, number: int) -> ConfigError:
        why = "LayerSpec.build must make a new layer at each call; list the module itself to have it copied"
        return refuse(self._model, f"layer {self.names[number]}: {why}")

    def _built(self, number: int, spec: LayerSpec) -> nn.Module:
        module = spec.build()
        if not isinstance(module, nn.Module):
            raise refuse(self._model, f"layer {self.names[number]}: build made {type(module).__name__}, not a module")
        return module

    def _slots(self, number: int, skeleton: nn.Module) -> tuple[Slot, ...]:
        entry = self._entries[number]
        ties = self._ties(number, skeleton, entry.ties) if isinstance(entry, LayerSpec) else None
        return tuple(
            Slot(name, tuple(parameter.shape), id(parameter) if ties is None else ties.get(id(parameter)))
            for name, parameter in skeleton.named_parameters()
        )

    def _ties(self, number: int, skeleton: nn.Module, ties: Mapping[str, str]) -> dict[int, Hashable]:
        """Key by identity of the parameter; one that has several names in the layer may be tied by any of them."""
        named = dict(skeleton.named_parameters(remove_duplicate=False))
        layer = f"layer {self.names[number]}"
        found: dict[int, Hashable] = {}
        for name, key in ties.items():
            if name not in named:
                raise refuse(self._model, f"{layer} ties {name!r}, which it lacks; it has {', '.join(named)}")
            if key in found.values() or id(named[name]) in found:
                why = f"{layer} uses {key!r} twice; let both names in it hold one Parameter object"
                raise refuse(self._model, why)
            found[id(named[name])] = key
        return found


@contextmanager
def _seeded(seed: int, number: int) -> Iterator[None]:
    """Draw from a global generator that depends on (seed, layer) alone, and leave it as it was."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()  # the generator reads 32 bits of it
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int.from_bytes(digest))
        yield


def _listed(model: object) -> tuple[nn.Module | LayerSpec, ...]:
    if isinstance(model, Sequence | nn.Sequential | nn.ModuleList) and not hasattr(model, "layers"):
        entries = list(model)
    elif callable(list_layers := getattr(model, "layers", None)) and not isinstance(list_layers, nn.Module):
        entries = list(list_layers())
    else:
        raise refuse(model, "give it a method layers() that lists its layers, or pass the list")
    if not entries:
        raise refuse(model, "it has no layers; list at least one")
    for number, entry in enumerate(entries):
        if not isinstance(entry, nn.Module | LayerSpec):
            raise refuse(model, f"layer {number} is a {type(entry).__name__}; list modules or LayerSpecs")
    return tuple(entries)


def _loss_of(model: object) -> LossSum:
    found = getattr(model, "loss_sum", None)
    if found is None:
        raise refuse(model, "give it a method loss_sum(output, targets), or pass loss=; summed, not averaged")
    return found


def _name(entry: nn.Module | LayerSpec) -> str:
    return entry.name if isinstance(entry, LayerSpec) else ""


def _check_owned(model: object, layers: Sequence[nn.Module]) -> None:
    """No parameter of a model that is a module is left out of its layers."""
    if not isinstance(model, nn.Module):
        return
    owned = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if missing := [name for name, parameter in model.named_parameters() if id(parameter) not in owned]:
        raise refuse(model, f"parameters {missing} belong to no layer of layers()")


def _elements_multiplied(layer: nn.Module) -> int:
    matrices = {
        id(parameter): parameter.numel()
        for module in layer.modules()
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() >= 2
    }
    return sum(matrices.values())
