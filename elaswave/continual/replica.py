"""What statistical physics predicts of a perceptron with binary weights that learns a task from a teacher.

Paper: https://arxiv.org/abs/2212.02846 (replica-symmetric saddle point of its first task). It is solved here by
quadrature and a damped iteration; derivatives are autograd's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HERMITE, LEGENDRE = 64, 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Saddle:
    """Order parameters of a solution.

    Attributes:
        overlap: q, between two solutions.
        teacher: r, between a solution and its teacher.
        own: q*, mean square of a weight's mean.
        error: generalisation error of the signs.
        iterations: until it stood still.
    """

    overlap: float
    teacher: float
    own: float
    error: float
    iterations: int


def first_task(
    alpha: float,
    *,
    beta: float = 20.0,
    divergence: float = 1.0,
    start: tuple[float, float, float] = (0.2, 0.15, 0.3),
    damping: float = 0.3,
    iterations_max: int = 400,
    tolerance: float = 1e-7,
) -> Saddle:
    """Solve for one task.

    Args:
        alpha: patterns per weight.
        beta: inverse temperature of the objective.
        divergence: weight of the divergence from equally likely weights; 0 leaves it out.
        start: overlap, teacher and own at the first iteration.
        damping: share of each iteration's step that is made.
        iterations_max: give up after so many.
        tolerance: how still the order parameters must stand, summed.

    Raises:
        ValueError: it does not stand still in time.
    """
    order = start
    for iteration in range(1, iterations_max + 1):
        conjugates = _conjugates(order, alpha, beta)
        proposed = _orders(conjugates, beta * divergence)
        change = sum(abs(new - old) for new, old in zip(proposed, order, strict=True))
        order = _legal([old + damping * (new - old) for new, old in zip(proposed, order, strict=True)])
        if change < tolerance:
            overlap = _sign_overlap(conjugates, beta * divergence)
            error = math.acos(max(-1.0, min(1.0, overlap))) / math.pi
            return Saddle(overlap=order[0], teacher=order[1], own=order[2], error=error, iterations=iteration)
    raise ValueError(f"alpha = {alpha}: no saddle after {iterations_max} iterations; start nearer, or damp more")


def _gauss(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a mean over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights / weights.sum()))


def _interval(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of an integral from -1 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights))


_Z, _LOG_WZ = _gauss(HERMITE)
_M, _LOG_WM = _interval(LEGENDRE)
_ENTROPY = -(1 + _M) / 2 * torch.log((1 + _M) / 2) - (1 - _M) / 2 * torch.log((1 - _M) / 2)


def _energy(overlap: Tensor, teacher: Tensor, own: Tensor, beta: float) -> Tensor:
    inner = (torch.sqrt(own - overlap) * _Z + torch.sqrt(overlap) * _Z[:, None]) / torch.sqrt(1 - own)
    log_mean = torch.logsumexp(beta * torch.special.log_ndtr(-inner) + _LOG_WZ, 1)
    side = torch.special.log_ndtr(-_Z * teacher / torch.sqrt(overlap - teacher.square()))
    return 2 * (torch.exp(_LOG_WZ + side) * log_mean).sum()


def _conjugates(order: tuple[float, float, float], alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    at = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in order]
    by_overlap, by_teacher, by_own = torch.autograd.grad(_energy(at[0], at[1], at[2], beta), at)
    return (-2 * alpha * by_overlap).clamp_min(1e-12), alpha * by_teacher, alpha * by_own


def _exponents(conjugates: tuple[Tensor, ...], entropy: float) -> Tensor:
    """(z, m) what is exponentiated and integrated over the mean of one weight."""
    overlap, teacher, own = conjugates
    linear = torch.sqrt(overlap) * _Z[:, None] + teacher
    return (own - overlap / 2) * _M.square() + linear * _M + entropy * _ENTROPY + _LOG_WM


def _orders(conjugates: tuple[Tensor, ...], entropy: float) -> tuple[float, float, float]:
    at = [value.clone().requires_grad_() for value in conjugates]
    action = (_LOG_WZ.exp() * torch.logsumexp(_exponents(tuple(at), entropy), 1)).sum()
    by_overlap, by_teacher, by_own = torch.autograd.grad(action, at)
    return float(-2 * by_overlap), float(by_teacher), float(by_own)


def _legal(order: list[float]) -> tuple[float, float, float]:
    """Order parameters inside the region where roots are real."""
    overlap = min(max(order[0], 1e-6), 1 - 2e-6)
    teacher = min(max(order[1], 1e-6), math.sqrt(overlap) - 1e-7)
    return overlap, teacher, min(max(order[2], overlap + 1e-7), 1 - 1e-7)


def _sign_overlap(conjugates: tuple[Tensor, ...], entropy: float) -> float:
    chances = torch.softmax(_exponents(conjugates, entropy), 1)
    return float((_LOG_WZ.exp()[:, None] * chances * _M.sign()).sum())
