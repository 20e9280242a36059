"""What has been computed of an open step: for the report, which tells what a fault has a job compute a second time."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from elaswave.pipeline.gradients import spans_of, within
from elaswave.planner.plan import Task

KINDS = 3
"""Passes of a layer: forward, backward for its input, backward for its weights; each is taken to cost the same."""
FORWARD, INPUT, WEIGHTS = range(KINDS)

Layers = dict[int, set[int]]
"""By micro-batch a set of layers."""


@dataclass(slots=True)
class Spent:
    """Layers of micro-batches that have been computed, by kind of pass."""

    passes: tuple[Layers, Layers, Layers] = field(default_factory=lambda: ({}, {}, {}))

    def add(self, kind: int, micro_batch: int, layers: Iterable[int]) -> None:
        """One pass through some layers."""
        self.passes[kind].setdefault(micro_batch, set()).update(layers)

    def merge(self, other: "Spent") -> None:
        for kind, found in enumerate(other.passes):
            for micro_batch, layers in found.items():
                self.add(kind, micro_batch, layers)

    def to_json(self) -> list[dict[str, list[tuple[int, int]]]]:
        return [{str(m): list(spans_of(layers)) for m, layers in found.items()} for found in self.passes]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        found = cls()
        for kind, rows in enumerate(value):
            for micro_batch, spans in rows.items():
                for start, stop in spans:
                    found.add(kind, int(micro_batch), range(start, stop))
        return found


def everything(micro_batches: Iterable[int], num_layers: int) -> Spent:
    """A whole step."""
    found = Spent()
    for micro_batch in micro_batches:
        for kind in range(KINDS):
            found.add(kind, micro_batch, range(num_layers))
    return found


def legs_of(tasks: Sequence[Task], members: Collection[int]) -> Spent:
    """All that some members are to compute.

    Args:
        tasks: of the attempt.
        members: as the tasks count them.
    """
    found = Spent()
    for task in tasks:
        for leg in task.legs:
            if leg.member in members:
                layers = range(leg.start, leg.stop)
                found.add(FORWARD, task.micro_batch, layers)
                found.add(INPUT, task.micro_batch, [layer for layer in layers if layer >= task.missing[0][0]])
                found.add(WEIGHTS, task.micro_batch, within(task.missing, leg.start, leg.stop))
    return found


def again(tasks: Sequence[Task], spent: Spent, costs: Sequence[float]) -> Mapping[int, float]:
    """By micro-batch the cost of those passes of `tasks` that have been computed before; in units of the costs.

    Forward passes run through all layers, those for inputs down to the lowest layer whose gradient is missing.
    """
    found: dict[int, float] = {}
    for task in tasks:
        missing = set(within(task.missing, 0, len(costs)))
        wanted = (set(range(len(costs))), set(range(min(missing), len(costs))), missing)
        twice = sum(
            costs[layer]
            for layers, passes in zip(wanted, spent.passes, strict=True)
            for layer in layers & passes.get(task.micro_batch, set())
        )
        if twice:
            found[task.micro_batch] = twice
    return found
