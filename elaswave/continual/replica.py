"""What statistical physics predicts of a perceptron with binary weights that learns from one teacher, then another.

Paper: https://arxiv.org/abs/2212.02846 (replica-symmetric saddle point of the first task; Franz-Parisi potential of the
second, whose prior is a solution of the first). Solved here by quadrature and a damped iteration; derivatives are
autograd's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HERMITE, FEW_HERMITE, LEGENDRE = 64, 24, 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Saddle:
    """Order parameters of a solution.

    Attributes:
        overlap: q, between two solutions.
        teacher: r, between a solution and its teacher.
        own: q*, mean square of a weight's mean.
        error: generalisation error of the signs.
        iterations: until it stood still.
        conjugates: of overlap, teacher and own.
    """

    overlap: float
    teacher: float
    own: float
    error: float
    iterations: int
    conjugates: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Generalisation errors of the signs after the second task, on both teachers."""

    first: float
    second: float


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
            hats = tuple(float(value) for value in conjugates)
            return Saddle(
                overlap=order[0],
                teacher=order[1],
                own=order[2],
                error=_angle(overlap),
                iterations=iteration,
                conjugates=(hats[0], hats[1], hats[2]),
            )
    raise ValueError(f"alpha = {alpha}: no saddle after {iterations_max} iterations; start nearer, or damp more")


def second_task(
    first: Saddle,
    alpha: float,
    similarity: float,
    *,
    gamma: float = 1.0,
    beta: float = 20.0,
    damping: float = 0.4,
    iterations_max: int = 400,
    tolerance: float = 1e-6,
) -> Errors:
    """Solve for a second task, learned from where the first one, with its divergence, has ended.

    Args:
        first: of the first task, at the same beta and with divergence 1.
        alpha: patterns per weight of the second task.
        similarity: overlap of the two teachers, from -1 to 1.
        gamma: weight of the divergence from the first task's solution.
        beta: inverse temperature of the objective.
        damping: share of each iteration's step that is made.
        iterations_max: give up after so many.
        tolerance: how still the order parameters must stand, summed.

    Raises:
        ValueError: it does not stand still in time.
    """
    local = _Second(first, similarity, beta, gamma)
    order = (first.overlap, similarity * first.teacher, first.own)
    for _ in range(iterations_max):
        conjugates = _conjugates(order, alpha, beta)
        proposed = local.orders(conjugates)
        change = sum(abs(new - old) for new, old in zip(proposed, order, strict=True))
        order = _legal([old + damping * (new - old) for new, old in zip(proposed, order, strict=True)], least=-1.0)
        if change < tolerance:
            return local.errors(conjugates)
    raise ValueError(f"alpha = {alpha}: no saddle after {iterations_max} iterations; damp more")


class _Second:
    """One weight in the second task, over its mean in the first, a field, and whether the teachers agree in it."""

    def __init__(self, first: Saddle, similarity: float, beta: float, gamma: float) -> None:
        hats = tuple(torch.tensor(value, dtype=torch.float64) for value in first.conjugates)
        at_first = torch.softmax(_exponents(hats, beta), 1)  # (z, m1)
        self._log_w1 = (_LOG_WZ.exp()[:, None] * at_first).sum(0).clamp_min(1e-300).log()
        up = (1 + _M) / 2 * torch.log((1 + _M) / (1 + _M[:, None]))
        down = (1 - _M) / 2 * torch.log((1 - _M) / (1 - _M[:, None]))
        self._held = -beta * gamma * (up + down)  # (m1, m)
        self._agree = torch.tensor([1.0, -1.0], dtype=torch.float64)
        share = (1 + self._agree * similarity) / 2
        self._weights = (_LOG_WX.exp()[:, None, None] * self._log_w1.exp()[None, :, None]) * share  # (x, m1, agree)

    def _exponents(self, conjugates: tuple[Tensor, ...]) -> Tensor:
        """(x, m1, agree, m)"""
        overlap, teacher, own = conjugates
        field = torch.sqrt(overlap) * _X[:, None, None, None] + teacher * self._agree[None, None, :, None]
        square = (own - overlap / 2) * _M.square() + _LOG_WM
        return square + field * _M + self._held[None, :, None, :]

    def orders(self, conjugates: tuple[Tensor, ...]) -> tuple[float, float, float]:
        at = [value.clone().requires_grad_() for value in conjugates]
        action = (self._weights * torch.logsumexp(self._exponents(tuple(at)), 3)).sum()
        by_overlap, by_teacher, by_own = torch.autograd.grad(action, at)
        return float(-2 * by_overlap), float(by_teacher), float(by_own)

    def errors(self, conjugates: tuple[Tensor, ...]) -> Errors:
        signs = (torch.softmax(self._exponents(conjugates), 3) * _M.sign()).sum(3)
        on_first, on_second = (self._weights * signs).sum(), (self._weights * signs * self._agree).sum()
        return Errors(first=_angle(float(on_first)), second=_angle(float(on_second)))


def _angle(overlap: float) -> float:
    return math.acos(max(-1.0, min(1.0, overlap))) / math.pi


def _gauss(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a mean over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights / weights.sum()))


def _interval(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of an integral from -1 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights))


_Z, _LOG_WZ = _gauss(HERMITE)
_X, _LOG_WX = _gauss(FEW_HERMITE)
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


def _legal(order: list[float], least: float = 1e-6) -> tuple[float, float, float]:
    """Order parameters inside the region where roots are real."""
    overlap = min(max(order[0], 1e-6), 1 - 2e-6)
    bound = math.sqrt(overlap) - 1e-6
    teacher = min(max(order[1], least, -bound), bound)
    return overlap, teacher, min(max(order[2], overlap + 1e-7), 1 - 1e-7)


def _sign_overlap(conjugates: tuple[Tensor, ...], entropy: float) -> float:
    chances = torch.softmax(_exponents(conjugates, entropy), 1)
    return float((_LOG_WZ.exp()[:, None] * chances * _M.sign()).sum())
