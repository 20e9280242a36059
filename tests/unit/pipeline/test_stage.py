"""A stage computes each micro-batch alone: whoever computes it, in whatever order, the sums are the same bits."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elaswave.config import Config
from elaswave.data.microbatch import sample_ids
from elaswave.errors import ConfigError, NumericsError
from elaswave.models.build import build_model
from elaswave.models.dropout import connect
from elaswave.numerics import ExactAccumulator
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.stage import Stage
from elaswave.pipeline.whole import Whole
from elaswave.rng import Streams

MICRO_BATCHES = 6
CONFIG = Config.model_validate(
    {
        "model": {"layers": 2, "width": 16, "heads": 2, "sequence_length": 8, "dropout": 0.2},
        "training": {"train_batch_size": 2 * MICRO_BATCHES, "micro_batch_size": 2},
    }
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(step, micro_batch):
    ids = sample_ids(
        seed=7, step=step, micro_batch=micro_batch, micro_batch_size=2, train_batch_size=12, num_samples=50
    )
    rows = torch.stack([torch.randint(0, 256, (9,), generator=torch.Generator().manual_seed(i)) for i in ids])
    return rows[:, :-1], rows[:, 1:], ids


def gpt():
    return Whole(Layers(build_model(CONFIG.model, 7), seed=7))


def stage_of(model=None, *, dropout=True):
    model = model or gpt()
    streams = Streams(7)
    connect(model, streams if dropout else None)
    return Stage(model, make_accumulator=ExactAccumulator, streams=streams, batch=batch, tokens_per_step=12 * 8)


def compute(stage, micro_batches, step=1):
    """Losses by micro-batch, and the sum of gradients."""
    stage.begin()
    losses = {}
    for micro_batch in micro_batches:
        losses[micro_batch] = stage.forward(step, micro_batch)
        stage.backward(micro_batch)
    return losses, stage.accumulator.buffer.clone()


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(0, 3), min_size=MICRO_BATCHES, max_size=MICRO_BATCHES),
    st.permutations(range(MICRO_BATCHES)),
    st.integers(1, 9),
)
def test_any_split_and_order_gives_the_same_bits(owners, order, step):
    alone_losses, alone = compute(stage_of(), range(MICRO_BATCHES), step)
    losses, total = {}, torch.zeros_like(alone)
    for worker in range(4):
        mine, buffer = compute(stage_of(), [m for m in order if owners[m] == worker], step)
        losses |= mine
        total += buffer
    assert losses == alone_losses
    assert torch.equal(total, alone)


def test_an_attempt_that_was_thrown_away_leaves_no_trace():
    stage, fresh = stage_of(), stage_of()
    compute(stage, [3, 1])
    stage.begin()
    stage.forward(1, 2)
    assert torch.equal(compute(stage, range(MICRO_BATCHES))[1], compute(fresh, range(MICRO_BATCHES))[1])


def test_gradient_is_that_of_the_mean_loss_of_the_whole_batch():
    stage = stage_of(dropout=False)
    losses, buffer = compute(stage, range(MICRO_BATCHES))
    model = gpt()
    inputs, targets = (torch.cat(rows) for rows in zip(*(batch(1, m)[:2] for m in range(MICRO_BATCHES)), strict=True))
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for layer in model.layers() for p in layer.parameters()])
    assert sum(losses.values()) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(stage.accumulator.to_float(buffer), wanted, rtol=1e-4, atol=1e-7)


def test_dropout_is_in_force():
    assert compute(stage_of(), [0])[0] != compute(stage_of(dropout=False), [0])[0]


def test_flat_order_and_layer_sizes():
    model = gpt()
    wanted = torch.cat([p.detach().flatten() for layer in model.layers() for p in layer.parameters()])
    stage = stage_of()
    assert torch.equal(stage.flat[0], wanted)
    assert sum(stage.layer_sizes()) == stage.num_elements == wanted.numel()
    assert len(stage.layer_sizes()) == CONFIG.model.layers + 2


def test_spans_cover_everything_and_only_matrices_decay():
    stage = stage_of()
    spans = stage.decay_spans()
    assert [start for start, _, _ in spans] == [0, *(stop for _, stop, _ in spans[:-1])]
    assert spans[-1][1] == stage.num_elements
    shapes = [p.dim() for layer in gpt().layers() for p in layer.parameters()]
    assert [decayed for _, _, decayed in spans] == [dim >= 2 for dim in shapes]


def test_flip_changes_the_parameters_in_use_and_nothing_else():
    stage = stage_of()
    before = stage.forward(1, 0)
    stage.flat[1].copy_(stage.flat[0]).mul_(1.5)
    assert stage.forward(1, 0) == before
    stage.flip(1)
    assert stage.active == 1
    assert stage.forward(1, 0) != before
    stage.flip(0)
    assert stage.forward(1, 0) == before


class Toy(nn.Module):
    """Logits from token ids through one matrix; other parts are given."""

    def __init__(self, *parts, layers=None):
        super().__init__()
        self.first = nn.Sequential(nn.Embedding(256, 256), *parts)
        self.extra = nn.Linear(2, 2)
        self._order = layers or (lambda model: [model.first, model.extra])

    def layers(self):
        return self._order(self)

    def forward(self, tokens):
        return self.first(tokens)

    def loss_sum(self, logits, targets):
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def test_unused_parameters_have_zero_gradients():
    stage = stage_of(Toy())
    buffer = compute(stage, [0])[1]
    assert buffer[: 256 * 256].any()
    assert not buffer[256 * 256 :].any()


@pytest.mark.parametrize(("bad", "told"), [(1e6, r"[\d.e+]+"), (torch.inf, "inf"), (torch.nan, "nan")])
def test_a_gradient_out_of_range_names_parameter_micro_batch_and_value(bad, told):
    class Loud(Toy):
        def loss_sum(self, logits, targets):
            return super().loss_sum(logits, targets) + bad * self.extra.bias.sum() * 1e3

    stage = stage_of(Loud())
    stage.forward(1, 4)
    with pytest.raises(NumericsError, match=f"^extra.bias: micro-batch 4 has a gradient of {told}; .*optimizer.lr"):
        stage.backward(4)
    assert not stage.accumulator.buffer.any()


class Drawing(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.1)


def test_a_model_that_draws_by_call_count_is_refused_when_it_does():
    stage = stage_of(Toy(Drawing()))
    with pytest.raises(ConfigError, match=r"draws by call count; use .*KeyedDropout"):
        stage.forward(1, 0)


def frozen():
    toy = Toy()
    toy.extra.bias.requires_grad_(False)
    return toy


@dataclasses.dataclass(frozen=True)
class Bad:
    model: nn.Module
    reason: str


@pytest.mark.parametrize(
    "bad",
    [
        Bad(Toy(nn.Dropout(0.1)), "first.1 draws by call count; use .*KeyedDropout"),
        Bad(Toy(nn.BatchNorm1d(8)), "first.1 mixes samples and keeps statistics"),
        Bad(frozen(), "extra.bias is frozen; keep .* in a buffer"),
        Bad(Toy().bfloat16(), "first.0.weight is torch.bfloat16; use .*autocast"),
        Bad(Toy(layers=lambda model: [model.first]), "extra.weight.*belong to no layer"),
        Bad(Toy(layers=lambda model: [model.first, model.first, model.extra]), "belongs to two layers"),
    ],
    ids=lambda bad: bad.reason[:12],
)
def test_models_that_cannot_be_exact_are_refused(bad):
    with pytest.raises(ConfigError, match=bad.reason):
        stage_of(bad.model)
