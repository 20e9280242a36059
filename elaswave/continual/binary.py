"""Variational continual learning with binary weights: what is trained are the fields that each weight feels.

Paper: https://arxiv.org/abs/2212.02846. A weight w is +1 or -1, with probability exp(beta theta w) / (2 cosh(beta
theta)); its mean is tanh(beta theta). A task's objective is the expected log-likelihood, and the distance of the
weights' distribution from that of the task before, which becomes its prior.
"""

import math

import torch
from torch import Tensor

LOG_2 = math.log(2)


def moments(field: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of every weight, in the shape of the fields."""
    mean = torch.tanh(beta * field)
    return mean, 1 - mean.square()


def divergence(field: Tensor, prior: Tensor, beta: float) -> Tensor:
    """() Kullback-Leibler divergence of the weights' distribution from the prior's, both given by fields.

    With a prior of zeros, all weights are equally likely.
    """
    mean = torch.tanh(beta * field)
    return (beta * (field - prior) * mean - log_cosh(beta * field) + log_cosh(beta * prior)).sum()


def divergence_slope(field: Tensor, prior: Tensor, beta: float) -> Tensor:
    """The gradient of `divergence` by the field: beta^2 (theta - theta') (1 - tanh^2), elementwise."""
    return beta**2 * (field - prior) * moments(field, beta)[1]


def log_cosh(x: Tensor) -> Tensor:
    """ln cosh, which does not overflow."""
    return x.abs() + torch.nn.functional.softplus(-2 * x.abs()) - LOG_2


def preactivation(x: Tensor, field: Tensor, beta: float, noise: Tensor) -> Tensor:
    """Sums over many binary weights are Gaussian: one draw of each, in a layer scaled by the root of its inputs.

    Args:
        x: (..., in).
        field: (in, out).
        beta: inverse temperature.
        noise: (..., out), standard normal.

    Returns:
        (..., out)
    """
    mean, variance = moments(field, beta)
    width = field.shape[0]
    spread = (x.square() @ variance / width).clamp_min(1e-30).sqrt()
    return x @ mean / math.sqrt(width) + noise * spread


def annealed_beta(task: int, epoch: int, tasks: int, epochs: int, top: float = 10.0) -> float:
    """Inverse temperature of an epoch, both counted from 0: it rises over the whole stream, and weights harden."""
    return top * math.tanh(0.1 + 2 / (tasks * epochs) * (task * epochs + epoch + 1))


def perceptron_loss(field: Tensor, x: Tensor, y: Tensor, beta: float = 1.0) -> Tensor:
    """(runs,) minus the log-likelihood of a perceptron with binary weights, summed over its patterns.

    Args:
        field: (runs, inputs).
        x: (runs, patterns, inputs) of +1 and -1.
        y: (runs, patterns) of +1 and -1.
        beta: inverse temperature.
    """
    mean, variance = moments(field, beta)
    margin = y * torch.einsum("rmn,rn->rm", x, mean) / variance.sum(1, keepdim=True).sqrt()
    return -torch.special.log_ndtr(margin).sum(1)


def generalisation_error(field: Tensor, teacher: Tensor) -> Tensor:
    """(runs,) share of random patterns on which the signs of the fields and the teacher disagree.

    Args:
        field: (runs, inputs).
        teacher: (runs, inputs) of +1 and -1.
    """
    overlap = (field.sign() * teacher).mean(1).clamp(-1, 1)
    return torch.arccos(overlap) / math.pi
