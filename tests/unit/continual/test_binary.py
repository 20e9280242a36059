"""Binary weights: gradients against autograd, Gaussian sums against draws, and theory against training."""

import math

import pytest
import torch

from elaswave.continual import binary
from elaswave.continual.replica import first_task


def fields(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_slope_of_the_divergence_is_its_gradient(beta):
    field, prior = fields(20).requires_grad_(), fields(20, seed=1)
    (slope,) = torch.autograd.grad(binary.divergence(field, prior, beta), field)
    torch.testing.assert_close(binary.divergence_slope(field.detach(), prior, beta), slope, rtol=1e-10, atol=1e-10)


def test_the_divergence_is_that_of_coins():
    field, prior = fields(5), fields(5, seed=1)
    expected = 0.0
    for ours, theirs in zip(torch.sigmoid(2 * 1.5 * field), torch.sigmoid(2 * 1.5 * prior), strict=True):
        expected += float(ours * torch.log(ours / theirs) + (1 - ours) * torch.log((1 - ours) / (1 - theirs)))
    assert float(binary.divergence(field, prior, 1.5)) == pytest.approx(expected)
    assert float(binary.divergence(field, field, 1.5)) == pytest.approx(0, abs=1e-12)


def test_log_cosh_does_not_overflow():
    x = torch.tensor([-800.0, -0.3, 0.0, 0.3, 800.0], dtype=torch.float64)
    torch.testing.assert_close(binary.log_cosh(x[1:4]), torch.cosh(x[1:4]).log())
    assert binary.log_cosh(x)[0] == pytest.approx(800 - math.log(2))


def test_sums_over_drawn_weights_have_the_gaussians_moments():
    generator = torch.Generator().manual_seed(2)
    x, field, beta = fields(1, 40), fields(40, 3, seed=1), 0.7
    up = torch.sigmoid(2 * beta * field)
    draws = 2 * (torch.rand((20000, 40, 3), generator=generator, dtype=torch.float64) < up).double() - 1
    sums = torch.einsum("i,dio->do", x[0], draws) / math.sqrt(40)
    mean = binary.preactivation(x, field, beta, torch.zeros(1, 3, dtype=torch.float64))
    spread = binary.preactivation(x, field, beta, torch.ones(1, 3, dtype=torch.float64)) - mean
    torch.testing.assert_close(sums.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(sums.std(0), spread[0], atol=0.03, rtol=0)


def test_weights_harden_over_the_whole_stream():
    values = [binary.annealed_beta(task, epoch, 3, 4) for task in range(3) for epoch in range(4)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(10 * math.tanh(2.1))


def test_the_perceptrons_likelihood_is_that_of_gaussian_margins():
    field, x = fields(2, 30), fields(2, 7, 30, seed=1).sign()
    y = fields(2, 7, seed=2).sign()
    mean, variance = binary.moments(field, 1.0)
    for run, found in enumerate(binary.perceptron_loss(field, x, y)):
        margins = y[run] * (x[run] @ mean[run]) / variance[run].sum().sqrt()
        assert float(found) == pytest.approx(-float((0.5 * torch.erfc(-margins / math.sqrt(2))).log().sum()))


def test_errors_are_angles():
    teacher = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).repeat(3, 1)
    field = torch.tensor([[2.0, 3.0, -1.0, -0.1], [-2.0, -3.0, 1.0, 0.1], [1.0, -1.0, 1.0, -1.0]])
    assert binary.generalisation_error(field, teacher).tolist() == pytest.approx([0.0, 1.0, 0.5], abs=1e-6)


def test_the_saddle_is_the_known_one():
    saddle = first_task(2.0)
    assert saddle.error == pytest.approx(0.1526, abs=2e-4)
    assert saddle.own == pytest.approx(0.546, abs=1e-3)
    with pytest.raises(ValueError, match="no saddle after 2"):
        first_task(2.0, iterations_max=2)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_training_comes_to_what_theory_predicts(alpha):
    runs, width, generator = 8, 200, torch.Generator().manual_seed(3)

    def signs(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1

    teacher, x = signs(runs, width), signs(runs, int(alpha * width), width)
    y = (torch.einsum("rmn,rn->rm", x, teacher) + 0.5).sign()
    field = torch.nn.Parameter(torch.randn((runs, width), generator=generator))
    optimizer = torch.optim.AdamW([field], lr=1e-2, weight_decay=5e-4)
    prior = torch.zeros(runs, width)
    for _ in range(2000):
        optimizer.zero_grad()
        (binary.perceptron_loss(field, x, y).sum() + binary.divergence(field, prior, 1.0)).backward()
        optimizer.step()
    error = float(binary.generalisation_error(field.detach(), teacher).mean())
    assert error == pytest.approx(first_task(alpha).error, abs=0.04)
