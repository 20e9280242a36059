"""Elastic weight consolidation: springs that hold each weight where earlier tasks want it, as stiff as it matters.

Papers: Kirkpatrick et al., https://arxiv.org/abs/1612.00796 (a spring per task); Huszar,
https://arxiv.org/abs/1712.03847, and Schwarz et al., https://arxiv.org/abs/1805.06370 (online: one spring).

The penalty is strength / 2 * sum of importance * (w - anchor)^2. Springs of several tasks at one weight are one spring:
the importances add up, and its anchor is their weighted mean. So two tensors are enough for any number of tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Spring:
    """What holds one tensor of weights.

    Attributes:
        importance: shape of the weights, at least 0.
        anchor: shape of the weights.
        offset: () float64, what the springs of several tasks hold against each other at the anchor; moves nothing.
    """

    importance: Tensor
    anchor: Tensor
    offset: Tensor


class EWC:
    """The springs of a model. They are elementwise: a shard of the weights needs that shard of them, and no more.

    Attributes:
        strength: lambda.
        springs: name -> spring, empty before the first task has ended.
    """

    def __init__(self, strength: float, *, online: bool = False, decay: float = 1.0) -> None:
        """
        Args:
            strength: lambda, at least 0.
            online: hold weights where the last task left them, with all importances; otherwise every task pulls to
                where it has been.
            decay: earlier importances are multiplied by it when a task ends; 1 forgets nothing. Only with `online`.

        Raises:
            ValueError: an option is out of its range.
        """
        if not strength >= 0:
            raise ValueError(f"strength = {strength}: must be at least 0")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay = {decay}: must be from 0 to 1")
        if decay != 1 and not online:
            raise ValueError(f"decay = {decay}: springs of separate tasks do not decay; use online=True, or 1")
        self.strength, self._online, self._decay = strength, online, decay
        self.springs: dict[str, Spring] = {}

    @torch.no_grad()
    def consolidate(self, fisher: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """End a task.

        Args:
            fisher: name -> importance for this task, as `fisher.diagonal` gives it.
            weights: name -> weights as the task leaves them.

        Raises:
            ValueError: names or shapes are not those of the weights held so far.
        """
        if self.springs and set(fisher) != set(self.springs):
            odd = sorted(set(fisher) ^ set(self.springs))
            raise ValueError(f"fisher: {odd} are there for some tasks only; give the same names for each task")
        for name, added in fisher.items():
            if added.shape != weights[name].shape:
                raise ValueError(f"fisher[{name!r}]: {tuple(added.shape)}, its weight {tuple(weights[name].shape)}")
        for name, added in fisher.items():
            self.springs[name] = self._joined(self.springs.get(name), added, weights[name])

    def _joined(self, held: Spring | None, added: Tensor, weight: Tensor) -> Spring:
        if held is None:
            return Spring(added.clone(), weight.detach().clone(), torch.zeros((), dtype=torch.float64))
        if self._online:
            return Spring(held.importance * self._decay + added, weight.detach().clone(), held.offset)
        importance = held.importance + added
        share = torch.where(importance > 0, added / importance, 0.5)  # of the new spring
        gap = weight - held.anchor
        tension = (held.importance * share * gap.square()).sum(dtype=torch.float64).cpu()
        return Spring(importance, held.anchor + share * gap, held.offset + tension)

    def penalty(self, weights: Mapping[str, Tensor]) -> Tensor:
        """() strength / 2 * sum; of shards it adds up to that of the whole.

        Args:
            weights: name -> the model's weights now, for a gradient through them.
        """
        parts = [(s.importance * (weights[name] - s.anchor).square()).sum() + s.offset for name, s in self._named()]
        return torch.stack(parts).sum() * (self.strength / 2) if parts else torch.zeros(())

    @torch.no_grad()
    def pull(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the penalty's gradient to that of each parameter, after the reduction and before the optimizer's step.

        It needs no autograd and no communication. Never before a sum over ranks: there it would count once for each.

        Args:
            parameters: name -> parameter that has a gradient.
        """
        for name, spring in self._named():
            gradient = parameters[name].grad
            if gradient is None:
                raise ValueError(f"{name}: has no gradient; call backward before")
            gradient.addcmul_(spring.importance, parameters[name] - spring.anchor, value=self.strength)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """name -> importance, anchor (both of the weight's shape) and offset."""
        return {name: {"importance": s.importance, "anchor": s.anchor, "offset": s.offset} for name, s in self._named()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace all springs by copies of those given."""
        self.springs = {
            name: Spring(kept["importance"].clone(), kept["anchor"].clone(), kept["offset"].clone())
            for name, kept in state.items()
        }

    def _named(self) -> list[tuple[str, Spring]]:
        return list(self.springs.items())
