"""A small language model that has learned one source learns another: with adapters alone, and with EWC on them.

After https://arxiv.org/abs/2305.10626, on sources that are drawn here: the old one is a chain in which each token
depends on the two before it; the new one asks how often a token was among the ten before.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from elaswave.config import Model
from elaswave.continual.lora import LowRank, adapt, penalty
from elaswave.models.gpt import GPT

ROWS, VOCABULARY, LENGTH = 256, 32, 32
CHAIN_TOKENS, SHARPNESS = 20, 2.5
ITEMS, KINDS, ASK, IS, FIRST_NUMBER, MOST = 10, 5, 20, 21, 22, 9
TARGETS = ("attend", "project", "widen", "narrow")
EWC_STRENGTH, EWC_LR = 100.0, 2e-3
FULL_LR = 1e-3

Batch = tuple[Tensor, Tensor]
"""(batch, length) tokens, and (batch, length) weights of the tokens as targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the experiment is."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    rank: int = 8
    alpha: float = 32.0
    pretraining_steps: int = 700
    adaptation_steps: int = 600
    batch: int = 64
    fisher_samples: int = 400
    test_samples: int = 512


class Sources:
    """The old and the new source of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        shape = (CHAIN_TOKENS, CHAIN_TOKENS, CHAIN_TOKENS)
        self._chain = (SHARPNESS * torch.randn(shape, generator=self.generator)).softmax(-1)

    def old(self, count: int) -> Batch:
        """Walks along the chain; every token is a target."""
        tokens = list(torch.randint(0, CHAIN_TOKENS, (2, count), generator=self.generator))
        while len(tokens) < LENGTH + 1:
            chances = self._chain[tokens[-2], tokens[-1]]
            tokens.append(torch.multinomial(chances, 1, generator=self.generator)[:, 0])
        return torch.stack(tokens, 1), torch.ones(count, LENGTH + 1)

    def new(self, count: int) -> Batch:
        """Ten items, a question, an answer; only the answer is a target."""
        items = torch.randint(0, KINDS, (count, ITEMS), generator=self.generator)
        asked = torch.randint(0, KINDS, (count, 1), generator=self.generator)
        number = (items == asked).sum(1, keepdim=True).clamp(max=MOST)
        ask, is_ = torch.full((count, 1), ASK), torch.full((count, 1), IS)
        tokens = torch.cat([items, ask, asked, is_, FIRST_NUMBER + number], 1)
        weights = torch.zeros(tokens.shape)
        weights[:, -1] = 1
        return tokens, weights


def run(seed: int, scale: Scale) -> dict[str, dict[str, float]]:
    """contender -> "old_perplexity" and "new_accuracy"; "base" is the model before it learns the new source."""
    sources = Sources(seed)
    torch.manual_seed(seed)
    base = _model(scale)
    _train(base, sources.old, scale.pretraining_steps, scale.batch, 3e-3)
    tests = sources.old(scale.test_samples), sources.new(2 * scale.test_samples)
    fisher = sequence_fisher(base, sources.old(scale.fisher_samples))
    found = {"base": _judge(base, *tests)}
    for name, strength in (("LoRA", 0.0), ("EWC-LoRA", EWC_STRENGTH)):
        model = copy.deepcopy(base)
        adapters = adapt(model, TARGETS, scale.rank, scale.alpha, generator=torch.Generator().manual_seed(seed))
        held = _held(adapters, fisher, strength) if strength else None
        _train(model, sources.new, scale.adaptation_steps, scale.batch, EWC_LR, held)
        found[name] = _judge(model, *tests)
    full = copy.deepcopy(base)
    _train(full, sources.new, scale.adaptation_steps, scale.batch, FULL_LR)
    return {**found, "all weights": _judge(full, *tests)}


def sequence_fisher(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Empirical Fisher information per sequence: mean squared gradient of the mean loss of a sequence's tokens.

    Args:
        model: at the weights at which it is taken.
        batch: of the old source.

    Returns:
        name of the weight -> its shape.
    """
    weights = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for tokens, chosen in zip(*(part.split(1) for part in batch), strict=True):
        slopes = torch.autograd.grad(_loss(model(tokens[:, :-1]), tokens, chosen), list(weights.values()))
        for name, slope in zip(weights, slopes, strict=True):
            total[name] += slope.square()
    return {name: value / len(batch[0]) for name, value in total.items()}


def _model(scale: Scale) -> nn.Module:
    config = Model(
        vocabulary=ROWS,
        width=scale.width,
        layers=scale.layers,
        heads=scale.heads,
        sequence_length=LENGTH,
        dropout=0.0,
    )
    layers = [spec.build() for spec in GPT(config).layers()]
    layers[-1].logits = nn.Linear(scale.width, VOCABULARY)  # tokens that no source has would only be in the way
    model = nn.Sequential(*layers)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            layer.reset_parameters()  # adapters train no embedding: tokens of the new source must differ from the start
    return model


def _held(adapters: Mapping[str, LowRank], fisher: Mapping[str, Tensor], strength: float) -> Callable[[], Tensor]:
    return lambda: penalty(adapters, fisher, strength)


def _train(
    model: nn.Module,
    source: Callable[[int], Batch],
    steps: int,
    batch: int,
    lr: float,
    held: Callable[[], Tensor] | None = None,
) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr)
    for _ in range(steps):
        tokens, weights = source(batch)
        loss = _loss(model(tokens[:, :-1]), tokens, weights)
        if held is not None:
            loss = loss + held()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def _loss(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    each = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    chosen = weights[:, 1:].flatten()
    return (each * chosen).sum() / chosen.sum()


@torch.no_grad()
def _judge(model: nn.Module, old: Batch, new: Batch) -> dict[str, float]:
    answers = model(new[0][:, :-1])[:, -1].argmax(1)
    return {
        "old_perplexity": math.exp(float(_loss(model(old[0][:, :-1]), *old))),
        "new_accuracy": float((answers == new[0][:, -1]).float().mean()),
    }
