"""Fisher information is what its definition says, sample by sample."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from elaswave.continual.fisher import Kind, diagonal


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(samples: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def estimate(net, kind, samples=10, **options):
    return diagonal(
        lambda w, x: functional_call(net, dict(w), (x,)), dict(net.named_parameters()), *data(samples), kind, **options
    )


def squares(net, log_probability):
    found = torch.autograd.grad(log_probability, list(net.parameters()))
    return {name: slope.square() for (name, _), slope in zip(net.named_parameters(), found, strict=True)}


def by_loops(net, weights_of):
    """Sum over samples and classes of weight x squared gradient, one backward each; mean over samples."""
    x, y = data()
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for n in range(len(x)):
        probabilities = net(x[n]).softmax(-1).detach()
        for c in range(3):
            weight = weights_of(probabilities, y[n])[c]
            for name, square in squares(net, net(x[n]).log_softmax(-1)[c]).items():
                total[name] += weight * square / len(x)
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_exact_and_empirical_are_the_loops(batch_size):
    net = model()
    exact = by_loops(net, lambda p, y: p)
    empirical = by_loops(net, lambda p, y: nn.functional.one_hot(y, 3))
    torch.testing.assert_close(estimate(net, Kind.EXACT, batch_size=batch_size), exact)
    torch.testing.assert_close(estimate(net, Kind.EMPIRICAL, batch_size=batch_size), empirical)


def test_sampled_comes_to_the_exact_one():
    net, generator = model(), torch.Generator().manual_seed(3)
    exact = estimate(net, Kind.EXACT)
    runs = [estimate(net, Kind.SAMPLED, generator=generator) for _ in range(300)]
    assert not torch.equal(runs[0]["0.weight"], runs[1]["0.weight"])
    for name, value in exact.items():
        mean = torch.stack([run[name] for run in runs]).mean(0)
        torch.testing.assert_close(mean.sum(), value.sum(), rtol=0.05, atol=0)
        assert (mean - value).norm() < 0.1 * value.norm()


def test_batch_mean_squares_the_mean_and_leaves_the_ragged_end_out():
    net = model()
    x, y = data()
    batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4)]
    parts = [squares(net, nn.functional.cross_entropy(net(a), b)) for a, b in batches]
    found = estimate(net, Kind.BATCH_MEAN, batch_size=4)
    torch.testing.assert_close(found, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})
    assert estimate(net, Kind.BATCH_MEAN, samples=3)["0.weight"].sum() > 0
    assert found["0.weight"].sum() < estimate(net, Kind.EMPIRICAL)["0.weight"].sum()


def test_nothing_to_estimate_from_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        estimate(model(), Kind.EXACT, samples=0)
    with pytest.raises(ValueError, match="Generator"):
        estimate(model(), Kind.SAMPLED)
