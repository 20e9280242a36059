"""A small model that is hard to divide, stages that hold parts of it, and micro-batches computed leg by leg."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from elaswave.models.dropout import KeyedDropout, connect
from elaswave.models.spec import LayerSpec
from elaswave.numerics import ExactAccumulator
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.stage import Stage
from elaswave.rng import Streams

MICRO_BATCHES = 6
LAYERS = 5
VOCABULARY, WIDTH, SEQUENCE = 11, 8, 5
Way = Sequence[tuple[int, int, int]]
"""Legs: (member, start, stop)."""
Sums = dict[int, torch.Tensor]
"""By unit."""


class First(nn.Module):
    """Tokens to vectors and, beside them, the tokens: a tuple of float and int64."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.token(tokens), tokens


class Middle(nn.Module):
    """Products that can be put off, a norm whose gradients cannot, and draws; tokens pass through."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = KeyedDropout(0.3, layer=layer, site=0)

    def forward(self, parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, tokens = parts
        return x + self.dropout(torch.tanh(self.mix(self.norm(x)))), tokens


class Last(nn.Module):
    """Vectors to logits, by the matrix of the first layer; looks at the tokens again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, tokens = parts
        return self.logits(self.norm(x)) - functional.one_hot(tokens, VOCABULARY)


class Knot:
    """The first and the last layer share a matrix, and tuples go from layer to layer."""

    def layers(self) -> list[LayerSpec]:
        return [
            LayerSpec(First, ties={"token.weight": "token"}, name="first"),
            *(LayerSpec(lambda n=number: Middle(n), name=f"middle.{number}") for number in range(1, LAYERS - 1)),
            LayerSpec(Last, ties={"logits.weight": "token"}, name="last"),
        ]

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output.float().flatten(0, 1), targets.flatten(), reduction="sum")


class Rows:
    """Two samples of token ids in each micro-batch, others in every step."""

    def ids(self, step: int, micro_batch: int) -> tuple[int, ...]:
        first = 2 * (step * MICRO_BATCHES + micro_batch)
        return first, first + 1

    def batch(self, ids: Sequence[int]) -> tuple[Any, torch.Tensor]:
        shape = (SEQUENCE + 1,)
        rows = [torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(i)) for i in ids]
        stacked = torch.stack(rows)
        return stacked[:, :-1], stacked[:, 1:]


def layers_of(model: object | None = None) -> Layers:
    return Layers(model or Knot(), seed=7)


def empty_stage(
    layers: Layers | None = None,
    *,
    source: Any = None,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    dropout: bool = True,
) -> Stage:
    """A stage that holds nothing yet."""
    streams = Streams(7)
    return Stage(
        layers or layers_of(),
        source or Rows(),
        streams,
        make_accumulator=lambda size: ExactAccumulator(size, MICRO_BATCHES),
        connect=lambda module: connect(module, streams if dropout else None),
        dtype=dtype,
        tokens_per_step=MICRO_BATCHES * 2 * SEQUENCE,
        checkpointing=checkpointing,
    )


def units_of(layers: Layers, held: Iterable[int]) -> tuple[int, ...]:
    """Units that these layers use."""
    return tuple(unit for unit, users in enumerate(layers.table.users) if set(users) & set(held))


def hold(stage: Stage, held: Sequence[int], keys: Sequence[tuple[int, ...]] | None = None) -> Stage:
    """Let a stage hold layers with their initial weights, as version 0; in one bucket by default."""
    stage.hold(held, (units_of(stage.layers, held),) if keys is None else keys, 0)
    for unit in stage.weights.buckets.units:
        stage.weights.put(unit, stage.layers.initial(unit), 0)
    stage.select(0)
    return stage


def whole_stage(layers: Layers | None = None, **options: Any) -> Stage:
    """A stage that holds all layers."""
    stage = empty_stage(layers, **options)
    return hold(stage, range(stage.layers.num_layers))


def compute_forward(
    members: Mapping[int, Stage] | Sequence[Stage],
    way: Way,
    micro_batch: int,
    missing: tuple[tuple[int, int], ...],
    step: int = 1,
) -> float:
    """Take a micro-batch through the legs of its way; returns its part of the loss."""
    received: tuple[torch.Tensor, ...] = ()
    flags: tuple[bool, ...] = ()
    for member, start, stop in way:
        outputs = members[member].forward(step, micro_batch, start, stop, received, flags, missing)
        received, flags = tuple(x.detach().clone() for x in outputs), tuple(x.requires_grad for x in outputs)
    return received[0].item()


def compute_backward(
    members: Mapping[int, Stage] | Sequence[Stage],
    way: Way,
    micro_batch: int,
    missing: tuple[tuple[int, int], ...],
    step: int = 1,
) -> None:
    """The way back for gradients of inputs, down to the lowest missing layer."""
    gradients: tuple[torch.Tensor, ...] = ()
    for member, start, stop in reversed(way):
        if stop > missing[0][0]:
            found = members[member].backward_input(step, micro_batch, start, stop, gradients)
            gradients = tuple(x.clone() for x in found)


def compute_weights(
    members: Mapping[int, Stage] | Sequence[Stage], way: Way, micro_batch: int, missing: tuple[tuple[int, int], ...]
) -> None:
    """Add up the gradients of weights that are wanted."""
    for member, start, stop in way:
        if any(low < stop and high > start for low, high in missing):
            members[member].backward_weight(micro_batch, start, stop)
        else:
            members[member].finish(micro_batch, start)


def compute(
    members: Mapping[int, Stage] | Sequence[Stage],
    way: Way,
    micro_batch: int,
    missing: tuple[tuple[int, int], ...] | None = None,
    step: int = 1,
) -> float:
    """All of a micro-batch; returns its part of the loss."""
    ranges = missing or ((0, way[-1][2]),)
    loss = compute_forward(members, way, micro_batch, ranges, step)
    compute_backward(members, way, micro_batch, ranges, step)
    compute_weights(members, way, micro_batch, ranges)
    return loss


def sums_of(stages: Iterable[Stage]) -> Sums:
    """By unit the gradients that the stages have added up, those set aside included."""
    found: Sums = {}
    for stage in stages:
        for unit in stage.weights.buckets.units:
            place = stage.weights.buckets.of_unit(unit)
            part = stage.gradients.sums[place.bucket].buffer[place.start : place.stop]
            found[unit] = found[unit] + part if unit in found else part.clone()
        for unit, part in stage.gradients.aside.items():
            found[unit] = found[unit] + part if unit in found else part.clone()
    return found


def same_sums(one: Sums, other: Sums) -> bool:
    """Equal in every bit; units without elements do not count."""
    filled = [{unit: part for unit, part in sums.items() if len(part)} for sums in (one, other)]
    return filled[0].keys() == filled[1].keys() and all(torch.equal(p, filled[1][u]) for u, p in filled[0].items())


def alone(
    micro_batches: Iterable[int] = range(MICRO_BATCHES), step: int = 1, **options: Any
) -> tuple[dict[int, float], Sums]:
    """Losses and sums of one worker that computes all layers in one leg."""
    stage = whole_stage(**options)
    way = [(0, 0, stage.layers.num_layers)]
    losses = {micro_batch: compute([stage], way, micro_batch, step=step) for micro_batch in micro_batches}
    return losses, sums_of([stage])
