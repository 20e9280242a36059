"""Gradient descent with elastic weights: springs to earlier tasks, estimated and moored by the optimizer itself.

Papers: EWC, https://arxiv.org/abs/1612.00796; online, https://arxiv.org/abs/1712.03847. All that is learned of earlier
tasks is state of the optimizer, elementwise and of the parameter's shape: whatever shards, copies or moves optimizer
state does so with the springs. What a step sees is a batch's mean gradient, so the importance is the batch-mean Fisher
information; where gradients of single samples are at hand, `continual.fisher` has better estimates.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class ElasticSGD(Optimizer):
    """SGD on the loss + strength / 2 * sum of importance * (w - anchor)^2.

    The state of a parameter is "step", a number, and of its shape: "squares", the sum of squared gradients of the task
    that is being learned; "importance" and "anchor", the spring that stands for all earlier tasks. Tasks follow the
    number of steps, so that a job that resumes is in the task it was in.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        *,
        strength: float = 1.0,
        task_ends: Sequence[int] = (),
        fisher_steps: int = 100,
        online: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        """
        Args:
            params: parameters, or groups of them; each group may set any option below.
            lr: learning rate.
            strength: of the springs, lambda.
            task_ends: number of the last step of each task but the last, ascending, counted from 1.
            fisher_steps: the importance is the mean over so many last steps of a task; over all, if it has fewer.
            online: springs are moored where the last task ended; otherwise at the weighted mean of all ends.
            weight_decay: times the weight, added to the gradient; no part of the importance.

        Raises:
            ValueError: an option is out of its range.
        """
        defaults = {"lr": lr, "strength": strength, "task_ends": tuple(task_ends), "fisher_steps": fisher_steps}
        super().__init__(params, {**defaults, "online": online, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and the state of its parameters, which nothing pulls yet.

        Raises:
            ValueError: an option is out of its range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for parameter in group["params"]:
            state = self.state[parameter]
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("squares", "importance", "anchor"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; at the end of a task, moor the springs.

        Args:
            closure: computes the gradients and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def estimated_steps(step: int, task_ends: Sequence[int], fisher_steps: int) -> int:
    """Over how many steps of the task its importance has been summed after this step; 0 where it is not summed.

    Args:
        step: counted from 1.
        task_ends: ascending.
        fisher_steps: at most so many.
    """
    start = max((end for end in task_ends if end < step), default=0)
    end = min((end for end in task_ends if end >= step), default=None)
    if end is None:
        return 0
    return max(0, step - max(start, end - fisher_steps))


def _update(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    state["step"] += 1
    step = int(state["step"])
    summed = estimated_steps(step, group["task_ends"], group["fisher_steps"])
    if summed == 1:
        state["squares"].zero_()
    if summed:
        state["squares"].addcmul_(gradient, gradient)
    pull = (weight - state["anchor"]).mul_(state["importance"])
    slope = gradient.add(pull, alpha=group["strength"])
    if group["weight_decay"]:
        slope.add_(weight, alpha=group["weight_decay"])
    weight.add_(slope, alpha=-group["lr"])
    if step in group["task_ends"]:
        _moor(weight, state, summed, online=group["online"])


def _moor(weight: Tensor, state: dict[str, Tensor], summed: int, *, online: bool) -> None:
    """End a task at these weights."""
    added = state["squares"] / summed
    state["importance"].add_(added)
    if online:
        state["anchor"].copy_(weight)
        return
    share = torch.where(state["importance"] > 0, added / state["importance"], 1.0)  # of the task in all so far
    state["anchor"].addcmul_(share, weight - state["anchor"])


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "strength", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"ElasticSGD: {name} = {group[name]}: must be at least 0")
    if group["fisher_steps"] < 1:
        raise ValueError(f"ElasticSGD: fisher_steps = {group['fisher_steps']}: must be at least 1")
    ends = tuple(group["task_ends"])
    if any(end < 1 for end in ends) or list(ends) != sorted(set(ends)):
        raise ValueError(f"ElasticSGD: task_ends = {ends}: give numbers of steps from 1 on, ascending")
