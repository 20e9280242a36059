"""Run any elementwise torch optimizer on one shard, twice buffered, so that a step can be taken back.

ZeRO stage 1 (https://arxiv.org/abs/1910.02054): master weights and optimizer state exist once over all owners. A step
evolves the committed version into the other slot and leaves the committed one as it was; committing names the
other slot.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from elaswave.block import Block, Scalars, Slot
from elaswave.zero.layout import Range, count, intersect
from elaswave.zero.schema import MASTER, Make, Schema, discover, groups_of

FRESH = "fresh"
"""Scalar that is true until the first step: the optimizer has no state yet, whatever the tensors say."""

Run = tuple[int, int]


def runs(ranges: Sequence[Range], decayed: Sequence[Range]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Local (first, last) stretches of a shard that are decayed, and those that are not.

    Args:
        ranges: ascending global ranges of the shard.
        decayed: ascending global ranges of all elements with weight decay.
    """
    found: tuple[list[Run], list[Run]] = ([], [])
    local = 0
    for start, stop in ranges:
        at = start
        for first, last in (*intersect([(start, stop)], decayed), (stop, stop)):
            _extend(found[1], local + at - start, local + first - start)
            _extend(found[0], local + first - start, local + last - start)
            at = last
        local += stop - start
    return tuple(found[0]), tuple(found[1])


def _extend(stretches: list[Run], first: int, last: int) -> None:
    """Append a stretch, joined to the one before when they touch."""
    if first == last:
        return
    if stretches and stretches[-1][1] == first:
        first = stretches.pop()[0]
    stretches.append((first, last))


class ShardedOptimizer:
    """One shard of the optimizer.

    Attributes:
        ranges: global element ranges of the shard; all flat tensors here are in their order.
        schema: what is kept per element and what is not.
        num_elements: of the shard.
        committed: version that counts; None until the first one is whole.
        gradient: the shard's gradient as the last step used it, already scaled; (num_elements,) float32.
    """

    def __init__(
        self, make: Make, ranges: Sequence[Range], decayed: Sequence[Range], schema: Schema | None = None
    ) -> None:
        """
        Args:
            make: parameter groups -> optimizer.
            ranges: ascending global ranges to own.
            decayed: ascending global ranges of all elements with weight decay; may reach beyond the shard.
            schema: of what `make` makes, when it is known already.

        Raises:
            ConfigError: the optimizer is not elementwise.
        """
        self._make = make
        self.ranges = tuple(ranges)
        self.schema = schema or discover(make)
        self.num_elements = count(self.ranges)
        self._slots = [Slot(self.schema.kinds, self.num_elements) for _ in range(2)]
        self._current = 0
        self.gradient = Block({"gradient": torch.float32}, self.num_elements).tensors["gradient"]
        self._runs = runs(self.ranges, decayed)
        self._parameters = tuple([self._parameter(run) for run in stretches] for stretches in self._runs)
        # one element per group that belongs to nobody: it has the group's scalars even where the shard has no part
        self._sentinels = tuple(nn.Parameter(torch.zeros(1)) for _ in self._runs)
        for sentinel in self._sentinels:
            sentinel.grad = torch.zeros(1)
        self._views = [self._views_of(slot) for slot in self._slots]
        self._optimizer: torch.optim.Optimizer | None = None

    def _parameter(self, run: Run) -> nn.Parameter:
        parameter = nn.Parameter(self._slots[0].tensors[MASTER][run[0] : run[1]])
        parameter.grad = self.gradient[run[0] : run[1]]
        return parameter

    def _views_of(self, slot: Slot) -> list[tuple[nn.Parameter, dict[str, torch.Tensor]]]:
        """Every parameter with its part of every tensor of a slot."""
        return [
            (parameter, {kind: tensor[first:last] for kind, tensor in slot.tensors.items()})
            for parameters, stretches in zip(self._parameters, self._runs, strict=True)
            for parameter, (first, last) in zip(parameters, stretches, strict=True)
        ]

    @property
    def committed(self) -> int | None:
        return self._slots[self._current].version

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that are whole: the committed one, then the one of the other slot."""
        both = (self._slots[self._current].version, self._slots[1 - self._current].version)
        return tuple(version for version in both if version is not None)

    def state(self, version: int | None = None) -> Slot:
        """Tensors and scalars of a version, the committed one by default; views, not copies.

        Raises:
            KeyError: that version is not here.
        """
        version = self.committed if version is None else version
        for slot in self._slots:
            if version is not None and slot.version == version:
                return slot
        raise KeyError(f"version {version} is not here; {self.versions} are")

    def initialise(self, master: torch.Tensor) -> None:
        """Begin at version 0 with these weights and no optimizer state.

        Args:
            master: (num_elements,), the shard's elements of the initial parameters.
        """
        slot = self.staging()
        slot.raw.zero_()
        slot.tensors[MASTER].copy_(master)
        self.adopt(0, {FRESH: True})

    def staging(self) -> Slot:
        """The committed slot, emptied to be filled from outside; nothing is committed until `adopt`."""
        for slot in self._slots:
            slot.version = None
        return self._slots[self._current]

    def adopt(self, version: int, scalars: Scalars) -> None:
        """Declare what was written into `staging()` whole, and commit it.

        Args:
            version: step after which the state was so.
            scalars: of that version, from any shard.
        """
        slot = self._slots[self._current]
        slot.scalars, slot.version = dict(scalars), version

    def make_room(self) -> None:
        """Use the memory that the next step will fill; nothing else may be under way in here."""
        self._slots[1 - self._current].raw.zero_()
        self.gradient.zero_()

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, lr: float, scale: float = 1.0) -> Slot:
        """Compute the next version in the other slot; the committed one stays as it is, and committed.

        Args:
            gradient: (num_elements,) float32, the reduced gradient of the shard; may be `self.gradient`, which is
                scaled in place, and is not changed otherwise.
            lr: learning rate of this step.
            scale: factor of the gradient, such as that of clipping; rounded to float32.

        Returns:
            The new version, not yet committed.
        """
        source, target = self._slots[self._current], self._slots[1 - self._current]
        if source.version is None:
            raise ValueError("there is no committed version to step from")
        target.version = None
        torch.mul(gradient, scale, out=self.gradient)
        target.raw.copy_(source.raw)
        views = self._views[1 - self._current]
        optimizer = self._bind(views, source.scalars)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        self._settle(optimizer, views)
        target.scalars, target.version = self._scalars(optimizer), source.version + 1
        return target

    def commit(self) -> None:
        """Make the version of the last step the committed one."""
        self.select((self.committed or 0) + 1)

    def discard(self, version: int) -> None:
        """Take back a version that has been computed and not been committed."""
        slot = self._slots[1 - self._current]
        if slot.version == version:
            slot.version = None

    def select(self, version: int) -> None:
        """Make a whole version the committed one, be it newer or older.

        Raises:
            KeyError: that version is not here.
        """
        self._current = self._slots.index(self.state(version))

    def _bind(
        self, views: list[tuple[nn.Parameter, dict[str, torch.Tensor]]], scalars: Scalars
    ) -> torch.optim.Optimizer:
        """Let the torch optimizer see a slot, with the scalars of the version it starts from."""
        for parameter, tensors in views:
            parameter.data = tensors[MASTER]
        if scalars[FRESH] or self._optimizer is None:
            decayed, plain = ([*p, s] for p, s in zip(self._parameters, self._sentinels, strict=True))
            self._optimizer = self._make(groups_of(decayed, plain))
        if scalars[FRESH]:
            return self._optimizer
        state = self._optimizer.state
        for parameter, tensors in views:
            state[parameter].update((kind, tensor) for kind, tensor in tensors.items() if kind != MASTER)
        for index, group in enumerate(self._optimizer.param_groups):
            group.update((name, scalars[f"{index}.group.{name}"]) for name in self.schema.group_scalars)
            self._sentinel_state(state[self._sentinels[index]])
            values = {name: scalars[f"{index}.{name}"] for name in self.schema.scalars}
            for parameter in group["params"]:
                self._set_scalars(state[parameter], values)
        return self._optimizer

    def _sentinel_state(self, state: dict[str, Any]) -> None:
        for kind, dtype in self.schema.kinds.items():
            if kind != MASTER and kind not in state:
                state[kind] = torch.zeros(1, dtype=dtype)

    def _set_scalars(self, state: dict[str, Any], values: Scalars) -> None:
        for name, dtype in self.schema.scalars.items():
            if dtype is None:
                state[name] = values[name]
            elif name in state:
                state[name].fill_(values[name])
            else:
                state[name] = torch.tensor(values[name], dtype=dtype)

    def _settle(
        self, optimizer: torch.optim.Optimizer, views: list[tuple[nn.Parameter, dict[str, torch.Tensor]]]
    ) -> None:
        """Bring into the slot what the optimizer has made anew instead of changing it in place."""
        for parameter, tensors in views:
            if parameter.data_ptr() != tensors[MASTER].data_ptr():
                tensors[MASTER].copy_(parameter)
            state = optimizer.state[parameter]
            for kind, tensor in tensors.items():
                if kind != MASTER and state[kind] is not tensor:
                    tensor.copy_(state[kind])
                    state[kind] = tensor

    def _scalars(self, optimizer: torch.optim.Optimizer) -> dict[str, float | int | bool | None]:
        """Scalars of the version just computed, as plain values."""
        found: dict[str, float | int | bool | None] = {FRESH: False}
        for index, group in enumerate(optimizer.param_groups):
            state = optimizer.state[self._sentinels[index]]
            for name, dtype in self.schema.scalars.items():
                found[f"{index}.{name}"] = state[name] if dtype is None else state[name].item()
            for name in self.schema.group_scalars:
                found[f"{index}.group.{name}"] = group[name]
        return found
