"""Binary weights: gradients against autograd, Gaussian sums against draws, and theory against training."""

import functools
import math

import pytest
import torch

from elaswave.continual import binary
from elaswave.continual.replica import first_task, second_task


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
@pytest.mark.parametrize(
    ("similarity", "alpha", "first", "second"),
    [(-0.5, 1.0, 0.357, 0.501), (0.0, 0.5, 0.252, 0.452), (0.0, 2.0, 0.384, 0.300), (0.5, 1.0, 0.233, 0.286)],
)
def test_the_second_tasks_saddle_is_the_known_one(similarity, alpha, first, second):
    errors = second_task(first_task(2.0), alpha, similarity)
    assert errors.first == pytest.approx(first, abs=1.5e-3)
    assert errors.second == pytest.approx(second, abs=1.5e-3)


RUNS, WIDTH = 8, 200
CELLS = [(-0.5, alpha) for alpha in (0.25, 0.5, 1.0, 2.0)]
CELLS += [(similarity, alpha) for similarity in (0.0, 0.5) for alpha in (0.5, 1.0, 2.0)]


def learn(field, prior, teacher, alpha, gamma, steps, generator):
    """Fields after a task: all its patterns at each step, and gamma times the divergence from the prior."""
    x = torch.randint(0, 2, (RUNS, int(alpha * WIDTH), WIDTH), generator=generator) * 2.0 - 1
    y = (torch.einsum("rmn,rn->rm", x, teacher) + 0.5).sign()
    field = torch.nn.Parameter(field.clone())
    optimizer = torch.optim.AdamW([field], lr=1e-2, weight_decay=5e-4 if gamma else 0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = binary.perceptron_loss(field, x, y).sum()
        if gamma:
            loss = loss + gamma * binary.divergence(field, prior, 1.0)
        loss.backward()
        optimizer.step()
    return field.detach()


@functools.cache
def first_learned():
    """The teacher of a first task at two patterns per weight, and fields that have learned it."""
    generator = torch.Generator().manual_seed(3)
    teacher = torch.randint(0, 2, (RUNS, WIDTH), generator=generator) * 2.0 - 1
    field = torch.randn((RUNS, WIDTH), generator=generator)
    return teacher, learn(field, torch.zeros(RUNS, WIDTH), teacher, 2.0, 1.0, 2000, generator)


@pytest.mark.slow
def test_learning_one_task_comes_to_what_theory_predicts():
    teacher, field = first_learned()
    assert float(binary.generalisation_error(field, teacher).mean()) == pytest.approx(first_task(2.0).error, abs=0.04)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("similarity", "alpha"), CELLS)
def test_learning_a_second_task_comes_to_what_theory_predicts_and_the_divergence_protects_the_first(similarity, alpha):
    first, field = first_learned()
    generator = torch.Generator().manual_seed(4)
    kept = torch.rand((RUNS, WIDTH), generator=generator) < (1 + similarity) / 2
    second = torch.where(kept, first, -first)
    theory = second_task(first_task(2.0), alpha, similarity)
    held, free = (learn(field, field, second, alpha, gamma, 3000, generator) for gamma in (1.0, 0.0))
    of_first = [float(binary.generalisation_error(found, first).mean()) for found in (held, free)]
    assert of_first[0] == pytest.approx(theory.first, abs=0.04)
    assert float(binary.generalisation_error(held, second).mean()) == pytest.approx(theory.second, abs=0.04)
    assert of_first[0] <= of_first[1] - 0.04
