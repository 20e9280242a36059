"""CLASSP: the more a weight has been used, the less it still moves. The sums it keeps are the memory of all tasks.

Paper: https://arxiv.org/abs/2405.09637 (equation 1 and algorithm 1; where the two differ in whether a sum holds the
gradient of the very step, this follows the algorithm: it does). For every element

    if g^2 > threshold:   A += |g|^p;   w -= lr * g / (eps + A)^(1/p)

The code published with the paper computes something else: it compares a whole tensor's "any gradient is not zero" with
the threshold, so that every threshold below 1 does nothing, and it throws the power away, so that p only changes the
root. Neither is reproduced here; useful thresholds are therefore small (1e-8 to 1e-5 for losses averaged over a batch).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

_CONTROLS = {"apply_decay": True, "first_task_steps": 0, "later_threshold": None, "weight_decay": 0.0}
_CONTROLS |= {"foreach": None, "maximize": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The update of one step.

    Attributes:
        decayed: divide by the root of the sum; False is plain gradient descent, while the sums still grow.
        threshold: squared gradients up to this one count as none.
    """

    lr: float
    threshold: float
    eps: float
    power: float
    decayed: bool


class CLASSP(Optimizer):
    """Continual learning through adaptive selection of sparse parameters.

    One optimizer lives for the whole stream of tasks; nothing is reset between them. The state of a parameter is
    "step", a number, and "grad_sum", the sum A of its shape, in float32 or better. Every operation is elementwise, so
    that any cut of a parameter computes its part; for powers 1 and 2 with the same bits.

    The schedule of a first task, in which weights move freely while their sums already grow, is a function of "step":
    it goes on where it was wherever the state goes.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        *,
        threshold: float = 0.0,
        eps: float = 1e-5,
        power: float = 1.0,
        apply_decay: bool = True,
        first_task_steps: int = 0,
        later_threshold: float | None = None,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        """
        Args:
            params: parameters, or groups of them; each group may set any option below.
            lr: learning rate.
            threshold: squared gradients must be larger to count, each for itself.
            eps: added to the sum, under the root.
            power: p; with 2 and threshold 0 this is AdaGrad.
            apply_decay: False: gradient descent, while the sums still grow.
            first_task_steps: so many steps are made without decay, whatever `apply_decay` says.
            later_threshold: the threshold after these steps; None: it stays.
            weight_decay: times the weight, added to the gradient before all else, as AdaGrad does.
            foreach: update many parameters at once; None: yes. The bits are the same.
            maximize: go up instead of down.

        Raises:
            ValueError: an option is out of its range.
        """
        defaults = {"lr": lr, "threshold": threshold, "eps": eps, "power": power, "apply_decay": apply_decay}
        defaults |= {"first_task_steps": first_task_steps, "later_threshold": later_threshold}
        defaults |= {"weight_decay": weight_decay, "foreach": foreach, "maximize": maximize}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and the empty state of its parameters.

        Raises:
            ValueError: an option is out of its range.
            TypeError: a parameter is complex.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for parameter in group["params"]:
            if parameter.is_complex():
                raise TypeError("CLASSP: a parameter is complex; give its torch.view_as_real instead")
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "grad_sum": torch.zeros_like(
                    parameter, dtype=_sum_dtype(parameter), memory_format=torch.preserve_format
                ),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in _CONTROLS.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; sums keep float32, although torch would round them to the parameter's type."""
        super().load_state_dict(state_dict)
        theirs = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        ours = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(theirs, ours, strict=True):
            if key in state_dict["state"]:
                kept = state_dict["state"][key]["grad_sum"]
                self.state[parameter]["grad_sum"] = kept.to(
                    dtype=_sum_dtype(parameter), device=parameter.device, copy=True
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient.

        Args:
            closure: computes the gradients and returns the loss.

        Raises:
            TypeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for rule, parameters in self._by_rule(group).items():
                self._update(rule, parameters, group)
        return loss

    def _by_rule(self, group: Mapping[str, Any]) -> dict[Rule, list[Tensor]]:
        """Count the step, and sort parameters by what it is to them: all alike, unless some had no gradient before."""
        sorted_: dict[Rule, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise TypeError("CLASSP: a gradient is sparse; make it dense (nn.Embedding(..., sparse=False))")
            step = self.state[parameter]["step"]
            step += 1
            sorted_.setdefault(rule_of(group, int(step)), []).append(parameter)
        return sorted_

    def _update(self, rule: Rule, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        together = [p for p in parameters if group["foreach"] is not False and _sum_dtype(p) == p.dtype]
        alone = [p for p in parameters if group["foreach"] is False or _sum_dtype(p) != p.dtype]
        if together:
            gradients = [_gradient(p, group) for p in together]
            foreach_classp(together, gradients, [self.state[p]["grad_sum"] for p in together], rule)
        for parameter in alone:
            classp(parameter, _gradient(parameter, group), self.state[parameter]["grad_sum"], rule)


def rule_of(group: Mapping[str, Any], step: int) -> Rule:
    """The update of a step, counted from 1, by the options of a group."""
    first = step <= group["first_task_steps"]
    later = group["later_threshold"]
    return Rule(
        lr=float(group["lr"]),
        threshold=group["threshold"] if first or later is None else later,
        eps=group["eps"],
        power=group["power"],
        decayed=group["apply_decay"] and not first,
    )


def classp(weight: Tensor, gradient: Tensor, grad_sum: Tensor, rule: Rule) -> None:
    """Update one tensor of weights and its sums in place.

    Args:
        weight: any shape.
        gradient: the same shape; in the type of the sums. What is not a number stays so, and is not taken for small.
        grad_sum: the same shape.
        rule: of this step.
    """
    if rule.threshold:
        gradient = gradient.masked_fill(gradient.square() <= rule.threshold, 0.0)
    if rule.power == 2:
        grad_sum.addcmul_(gradient, gradient)
    else:
        grad_sum.add_(gradient.abs() if rule.power == 1 else gradient.abs().pow_(rule.power))
    wide = weight.to(grad_sum.dtype)
    if not rule.decayed:
        wide.add_(gradient, alpha=-rule.lr)
    else:
        root = grad_sum + rule.eps
        if rule.power == 2:
            root.sqrt_()
        elif rule.power != 1:
            root.pow_(1 / rule.power)
        wide.addcdiv_(gradient, root, value=-rule.lr)
    if wide is not weight:
        weight.copy_(wide)


def foreach_classp(weights: list[Tensor], gradients: list[Tensor], grad_sums: list[Tensor], rule: Rule) -> None:
    """As `classp`, for many tensors at once, whose weights, gradients and sums have one type."""
    if rule.threshold:
        over = torch._foreach_mul(gradients, gradients)
        torch._foreach_sub_(over, rule.threshold)
        torch._foreach_sign_(over)
        torch._foreach_clamp_min_(over, 0.0)  # 1 where the square is larger, else 0
        gradients = list(torch._foreach_mul(gradients, over))
    if rule.power == 2:
        torch._foreach_addcmul_(grad_sums, gradients, gradients)
    else:
        sizes = torch._foreach_abs(gradients)
        if rule.power != 1:
            torch._foreach_pow_(sizes, rule.power)
        torch._foreach_add_(grad_sums, sizes)
    if not rule.decayed:
        torch._foreach_add_(weights, gradients, alpha=-rule.lr)
        return
    roots = torch._foreach_add(grad_sums, rule.eps)
    if rule.power == 2:
        torch._foreach_sqrt_(roots)
    elif rule.power != 1:
        torch._foreach_pow_(roots, 1 / rule.power)
    torch._foreach_addcdiv_(weights, gradients, roots, -rule.lr)


def _gradient(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """The gradient in the type of the sums, with weight decay, pointing up."""
    assert parameter.grad is not None
    gradient = parameter.grad.to(_sum_dtype(parameter))
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient.add(parameter.to(gradient.dtype), alpha=group["weight_decay"])
    return gradient


def _sum_dtype(parameter: Tensor) -> torch.dtype:
    """In bfloat16 a growing sum would soon stop to grow."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _check(group: Mapping[str, Any]) -> None:
    at_least_0 = ("lr", "threshold", "first_task_steps", "later_threshold", "weight_decay")
    for name in at_least_0:
        if group[name] is not None and not group[name] >= 0:
            raise ValueError(f"CLASSP: {name} = {group[name]}: must be at least 0")
    for name in ("eps", "power"):
        if not group[name] > 0:
            raise ValueError(f"CLASSP: {name} = {group[name]}: must be greater than 0")
