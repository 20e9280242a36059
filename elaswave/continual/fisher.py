"""How much each weight matters to what a classifier has learned: the diagonal of the Fisher information.

Paper: Kirkpatrick et al., https://arxiv.org/abs/1612.00796; the kinds are compared in https://arxiv.org/abs/2502.11756.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn import functional

Weights = Mapping[str, Tensor]
Logits = Callable[[Weights, Tensor], Tensor]
"""(weights, (batch, ...) inputs) -> (batch, classes) logits; of each sample for itself alone."""


class Kind(StrEnum):
    """What is squared, and over what the mean is taken."""

    EXACT = "exact"
    """Each sample's gradient for every class, weighted with the model's probabilities: the definition itself."""
    SAMPLED = "sampled"
    """Each sample's gradient for one class drawn from the model: right on average, and a class's share of the work."""
    EMPIRICAL = "empirical"
    """Each sample's gradient for its true class: vanishes where the model fits."""
    BATCH_MEAN = "batch_mean"
    """A batch's mean gradient for true classes: as some libraries do; gradients cancel before they are squared."""


def diagonal(
    logits: Logits,
    weights: Weights,
    inputs: Tensor,
    targets: Tensor,
    kind: Kind = Kind.EXACT,
    *,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The mean over samples (over batches for `BATCH_MEAN`) of squared gradients of log-probabilities.

    Args:
        logits: the model; `functional_call(module, weights, (inputs,))` for a module.
        weights: name -> weights at which it is taken.
        inputs: (samples, ...).
        targets: (samples,) true classes, int64; not looked at by `EXACT` and `SAMPLED`.
        kind: which of the four.
        batch_size: samples per squared gradient for `BATCH_MEAN`, whose last, smaller batch is left out unless it is
            the only one; for the other kinds only memory and speed depend on it.
        generator: draws the classes of `SAMPLED`; required there.

    Returns:
        name -> (shape of the weight), at least 0.

    Raises:
        ValueError: there are no samples, or no generator to draw from.
    """
    if not len(inputs):
        raise ValueError("inputs: no samples; give at least one")
    if kind is Kind.SAMPLED and generator is None:
        raise ValueError("generator = None: sampled classes need a torch.Generator")
    held = {name: weight.detach() for name, weight in weights.items()}
    total = {name: torch.zeros_like(weight) for name, weight in held.items()}
    batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
    if kind is Kind.BATCH_MEAN and len(batches) > 1:
        batches = [(x, y) for x, y in batches if len(x) == batch_size]
    for x, y in batches:
        for name, squares in _squares(logits, held, x, y, kind, generator).items():
            total[name] += squares
    count = len(batches) if kind is Kind.BATCH_MEAN else len(inputs)
    return {name: squares / count for name, squares in total.items()}


def _squares(
    logits: Logits, weights: Weights, x: Tensor, y: Tensor, kind: Kind, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Sum over a batch."""

    def log_probabilities(at: Weights, sample: Tensor) -> Tensor:
        return logits(at, sample[None])[0].log_softmax(-1)

    def of_class(at: Weights, sample: Tensor, chosen: Tensor) -> Tensor:
        return (log_probabilities(at, sample) * chosen).sum()

    if kind is Kind.BATCH_MEAN:
        means = grad(lambda at: functional.cross_entropy(logits(at, x), y))(weights)
        return {name: mean.square() for name, mean in means.items()}
    with torch.no_grad():
        probabilities = logits(weights, x).softmax(-1)  # (batch, classes)
    if kind is Kind.EXACT:
        slopes = vmap(jacrev(log_probabilities), in_dims=(None, 0))(weights, x)  # each (batch, classes, shape)
        shares = probabilities.flatten()
        return {
            name: (shares @ slope.flatten(0, 1).flatten(1).square()).view_as(weights[name])
            for name, slope in slopes.items()
        }
    if kind is Kind.SAMPLED:
        y = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    chosen = functional.one_hot(y, probabilities.shape[-1]).to(probabilities.dtype)
    slopes = vmap(grad(of_class), in_dims=(None, 0, 0))(weights, x, chosen)
    return {name: slope.square().sum(0) for name, slope in slopes.items()}
