"""Every parameter of a model with its place: in the flat order of all elements, and in the layers that use it.

A *unit* is a run of parameters that is held as a whole: first, for each layer, those that it alone uses; then one for
each weight that several layers share. The flat order is that of the units, and within a unit that of its parameters.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter as one layer sees it.

    Attributes:
        name: inside the layer.
        tie: equal for all uses of one weight; None when no other layer can use it.
    """

    name: str
    shape: tuple[int, ...]
    tie: Hashable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One weight, however many layers use it.

    Attributes:
        name: of the first layer that uses it, and inside that.
        start, stop: elements in flat order.
        decayed: matrices are.
        unit: that it belongs to.
        uses: (layer, name inside it), in order of layers.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    decayed: bool
    unit: int
    uses: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All parameters of a model.

    Attributes:
        num_layers: L.
        parameters: in flat order.
        users: per unit the layers that use it, ascending; (l,) for unit l < L.
    """

    num_layers: int
    parameters: tuple[Parameter, ...]
    users: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[tuple[str, int], ...], ...]

    @cached_property
    def unit_bounds(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each unit in flat order."""
        bounds, start = [], 0
        for size in self.unit_sizes():
            bounds.append((start, start + size))
            start += size
        return tuple(bounds)

    @property
    def num_elements(self) -> int:
        return self.parameters[-1].stop if self.parameters else 0

    def unit_sizes(self) -> tuple[int, ...]:
        """Elements of each unit."""
        sizes = [0] * len(self.users)
        for parameter in self.parameters:
            sizes[parameter.unit] += parameter.stop - parameter.start
        return tuple(sizes)

    def of_layer(self, layer: int) -> tuple[tuple[str, int], ...]:
        """Of each parameter of a layer, in the order of `named_parameters`, its name inside and its index."""
        return self.layers[layer]

    def of_unit(self, unit: int) -> tuple[Parameter, ...]:
        """In flat order."""
        return tuple(parameter for parameter in self.parameters if parameter.unit == unit)

    def named_spans(self) -> tuple[tuple[str, int, int], ...]:
        """For each parameter its name and (start, stop) in flat order."""
        return tuple((parameter.name, parameter.start, parameter.stop) for parameter in self.parameters)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each parameter by its name."""
        return {parameter.name: parameter.shape for parameter in self.parameters}

    def decay_spans(self) -> tuple[tuple[int, int, bool], ...]:
        """For each parameter its (start, stop) in flat order, and whether it is decayed: matrices are."""
        return tuple((parameter.start, parameter.stop, parameter.decayed) for parameter in self.parameters)


def tabulate(layers: Sequence[Sequence[Slot]], names: Sequence[str]) -> Table:
    """Put the parameters of layers in flat order.

    Args:
        layers: per layer its slots, in the order of `named_parameters`; at most one per tie.
        names: of the layers.

    Raises:
        ValueError: uses of one weight differ in shape.
    """
    ties: dict[Hashable, list[tuple[int, Slot]]] = {}
    for number, slots in enumerate(layers):
        for slot in slots:
            if slot.tie is not None:
                ties.setdefault(slot.tie, []).append((number, slot))
    shared = {tie: uses for tie, uses in ties.items() if len(uses) > 1}
    weights: list[tuple[int, list[tuple[int, Slot]]]] = [
        (number, [(number, slot)]) for number, slots in enumerate(layers) for slot in slots if slot.tie not in shared
    ]
    weights += [(len(layers) + index, uses) for index, uses in enumerate(shared.values())]
    parameters: list[Parameter] = []
    places: dict[tuple[int, str], int] = {}
    start = 0
    for unit, uses in weights:
        parameter = _parameter(uses, names, unit, start)
        places |= dict.fromkeys(parameter.uses, len(parameters))
        parameters.append(parameter)
        start = parameter.stop
    return Table(
        num_layers=len(layers),
        parameters=tuple(parameters),
        users=(
            *((number,) for number in range(len(layers))),
            *(tuple(number for number, _ in uses) for uses in shared.values()),
        ),
        layers=tuple(
            tuple((slot.name, places[number, slot.name]) for slot in slots) for number, slots in enumerate(layers)
        ),
    )


def _parameter(uses: Sequence[tuple[int, Slot]], names: Sequence[str], unit: int, start: int) -> Parameter:
    first, slot = uses[0]
    name = f"{names[first]}.{slot.name}"
    for number, other in uses[1:]:
        if other.shape != slot.shape:
            told = f"{names[number]}.{other.name} is {other.shape}"
            raise ValueError(f"one weight has one shape, but {name} is {slot.shape} and {told}")
    return Parameter(
        name=name,
        shape=slot.shape,
        start=start,
        stop=start + prod(slot.shape),
        decayed=len(slot.shape) >= 2,
        unit=unit,
        uses=tuple((number, use.name) for number, use in uses),
    )
