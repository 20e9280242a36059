"""Find out what state an optimizer keeps, and whether it may be sharded at all, by trying it on a few numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from elaswave.errors import ConfigError

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Parameter groups -> optimizer. Two groups: decayed parameters, and those with weight_decay 0."""

MASTER = "master"
"""Name of the weights among the tensors of a shard."""

_PARTS = (137, 24, 1, 349)  # no multiples of a vector register: their ends take other paths through a kernel
_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The state of an elementwise optimizer.

    Attributes:
        kinds: dtype of everything kept per element, the master weights first.
        scalars: values kept per parameter that are one number: dtype, or None for a plain Python value.
        group_scalars: numbers in the parameter groups that change from step to step.
    """

    kinds: Mapping[str, torch.dtype]
    scalars: Mapping[str, torch.dtype | None]
    group_scalars: tuple[str, ...]


def groups_of(decayed: Sequence[nn.Parameter], plain: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups as every optimizer here is made from."""
    return [{"params": list(decayed)}, {"params": list(plain), "weight_decay": 0.0}]


def discover(make: Make) -> Schema:
    """Learn the schema of what `make` makes.

    Raises:
        ConfigError: its update of an element depends on other elements, so that a shard of the state is not
            enough to compute a shard of the update.
    """
    whole, parts = _Trial(make, (sum(_PARTS),)), _Trial(make, _PARTS)
    whole.step(), parts.step()
    first = whole.schema()
    for _ in range(_STEPS):
        whole.step(), parts.step()
    schema = whole.schema()
    if (first.kinds, first.scalars) != (schema.kinds, schema.scalars):
        raise _refuse(whole.optimizer, "it keeps other state after several steps than after the first")
    for kind in schema.kinds:
        if not torch.equal(whole.bits(kind), parts.bits(kind)):
            raise _refuse(whole.optimizer, f"{kind} of an element depends on how the others are cut")
    return schema


def warm_up() -> None:
    """Pay now for what torch imports when the first optimizer is made (seconds)."""
    discover(lambda groups: torch.optim.AdamW(groups))


class _Trial:
    """An optimizer on a decayed and a plain tensor of `sum(lengths)` elements, each cut into parts of `lengths`."""

    def __init__(self, make: Make, lengths: tuple[int, ...]) -> None:
        self.random = torch.Generator().manual_seed(0)
        values = torch.randn(sum(lengths), generator=self.random)
        self.parameters = [[nn.Parameter(part.clone()) for part in values.split(lengths)] for _ in range(2)]
        try:
            self.optimizer = make(groups_of(*self.parameters))
        except (TypeError, ValueError) as error:
            name = getattr(make, "__name__", repr(make))
            raise ConfigError("optimizer.name", name, f"does not take two parameter groups: {error}") from error
        self.before = dict(self.optimizer.param_groups[0])

    def step(self) -> None:
        for parameters in self.parameters:
            lengths = [p.numel() for p in parameters]
            gradient = torch.randn(sum(lengths), generator=self.random)
            for parameter, part in zip(parameters, gradient.split(lengths), strict=True):
                parameter.grad = part.clone()
        self.optimizer.step()

    def schema(self) -> Schema:
        parameter = self.parameters[0][0]
        kinds: dict[str, torch.dtype] = {MASTER: torch.float32}
        scalars: dict[str, torch.dtype | None] = {}
        for name, value in self.optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and name != MASTER:
                kinds[name] = value.dtype
            elif isinstance(value, torch.Tensor) and value.dim() == 0:
                scalars[name] = value.dtype
            elif value is None or isinstance(value, (bool, int, float)):
                scalars[name] = None
            else:
                raise _refuse(self.optimizer, f"its state {name!r} is neither one number nor one per element")
        return Schema(kinds=kinds, scalars=scalars, group_scalars=self._changed())

    def bits(self, kind: str) -> torch.Tensor:
        """All elements of a kind, as bytes."""
        parts = [p for parameters in self.parameters for p in parameters]
        found = [p.detach() if kind == MASTER else self.optimizer.state[p][kind] for p in parts]
        return torch.cat(found).contiguous().view(torch.uint8)

    def _changed(self) -> tuple[str, ...]:
        """Entries of the parameter groups that the steps changed."""
        changed = []
        for name, value in self.optimizer.param_groups[0].items():
            if name == "params" or value is self.before.get(name):
                continue
            if not isinstance(value, (bool, int, float)):
                raise _refuse(self.optimizer, f"its parameter groups keep {name!r}, which is not a plain number")
            if value != self.before.get(name):
                changed.append(name)
        return tuple(changed)


def _refuse(optimizer: torch.optim.Optimizer, why: str) -> ConfigError:
    return ConfigError(
        "optimizer.name", type(optimizer).__name__, f"cannot be sharded: {why}; use an elementwise optimizer"
    )
