"""A stage computes each micro-batch alone: whoever computes which layers, in whatever order, the sums are the same."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stages import (
    LAYERS,
    MICRO_BATCHES,
    Rows,
    Sums,
    alone,
    compute,
    compute_backward,
    compute_forward,
    compute_weights,
    empty_stage,
    hold,
    layers_of,
    same_sums,
    sums_of,
    units_of,
    whole_stage,
)
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from elaswave.errors import ConfigError, NumericsError
from elaswave.pipeline.stage import Stage
from elaswave.pipeline.whole import Whole

ALL = ((0, LAYERS),)
DTYPES = [torch.float32, torch.bfloat16]
WAY = [(0, 0, 2), (1, 2, 4), (0, 4, LAYERS)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


reference = cache(alone)


@st.composite
def ways(draw: st.DrawFn, members: int = 3) -> list[tuple[int, int, int]]:
    """Any cut of the layers into legs, each computed by anybody."""
    cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1))))
    bounds = [0, *cuts, LAYERS]
    owners = draw(st.lists(st.integers(0, members - 1), min_size=len(bounds) - 1, max_size=len(bounds) - 1))
    return list(zip(owners, bounds, bounds[1:], strict=False))


@st.composite
def buckets(draw: st.DrawFn, units: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Any grouping of units into buckets."""
    homes = draw(st.lists(st.integers(0, 2), min_size=len(units), max_size=len(units)))
    return [tuple(u for u, home in zip(units, homes, strict=True) if home == number) for number in sorted(set(homes))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=15)
@given(data=st.data(), step=st.integers(1, 2))
def test_any_legs_and_any_order_give_the_bits_of_one_leg(dtype, data, step):
    layers = layers_of()
    routes = [data.draw(ways()) for _ in range(MICRO_BATCHES)]
    members: dict[int, Stage] = {}
    for member in range(3):
        held = sorted({n for way in routes for m, start, stop in way if m == member for n in range(start, stop)})
        stage = empty_stage(layers, dtype=dtype, checkpointing=data.draw(st.booleans()))
        members[member] = hold(stage, held, data.draw(buckets(units_of(layers, held))))
    losses = {}
    for micro_batch in data.draw(st.permutations(range(MICRO_BATCHES))):
        losses[micro_batch] = compute_forward(members, routes[micro_batch], micro_batch, ALL, step)
    for micro_batch in data.draw(st.permutations(range(MICRO_BATCHES))):
        compute_backward(members, routes[micro_batch], micro_batch, ALL, step)
    for micro_batch in data.draw(st.permutations(range(MICRO_BATCHES))):
        compute_weights(members, routes[micro_batch], micro_batch, ALL)
    wanted_losses, wanted = reference(step=step, dtype=dtype)
    assert losses == wanted_losses
    assert same_sums(sums_of(members.values()), wanted)


@settings(deadline=None, max_examples=15)
@given(
    ways(),
    st.lists(st.integers(0, 2), min_size=LAYERS, max_size=LAYERS),
    st.permutations(range(3)),
    st.sampled_from(DTYPES),
)
def test_only_the_layers_that_are_wanted_are_added(way, turns, order, dtype):
    """Each layer's gradient is wanted in one of three turns; together they give each exactly once."""
    layers = layers_of()
    members = [whole_stage(layers, dtype=dtype) for _ in range(3)]
    for turn in order:
        wanted = [number for number in range(LAYERS) if turns[number] == turn]
        if not wanted:
            continue
        before, missing = sums_of(members), tuple((number, number + 1) for number in wanted)
        loss = compute(members, way, 2, missing)
        assert {2: loss} == reference((2,), dtype=dtype)[0]
        for unit in units_of(layers, set(range(LAYERS)) - set(wanted)):
            if not set(layers.table.users[unit]) & set(wanted):
                assert torch.equal(sums_of(members)[unit], before[unit])
    recorded = [number for member in members for number in member.gradients.layers.get(2, ())]
    assert sorted(recorded) == list(range(LAYERS))
    assert same_sums(sums_of(members), reference((2,), dtype=dtype)[1])


def test_nothing_is_kept_of_a_forward_below_all_missing_layers():
    members = [whole_stage(), whole_stage()]
    way = [(0, 0, 3), (1, 3, LAYERS)]
    missing = ((4, LAYERS),)
    compute_forward(members, way, 0, missing)
    outputs = members[0].forward(1, 0, 0, 3, (), (), missing)
    assert not any(x.requires_grad for x in outputs)
    with pytest.raises(KeyError):
        members[0].backward_input(1, 0, 0, 3, ())


def test_uses_of_a_tied_weight_on_two_stages_add_up():
    layers = layers_of()
    first, last = hold(empty_stage(layers), [0, 1, 2]), hold(empty_stage(layers), [3, 4])
    tie = len(layers.table.users) - 1
    assert layers.table.users[tie] == (0, LAYERS - 1)
    assert torch.equal(first.weights.unit(tie), last.weights.unit(tie))
    compute([first, last], [(0, 0, 3), (1, 3, LAYERS)], 0)
    parts = [sums_of([stage])[tie] for stage in (first, last)]
    assert all(part.any() for part in parts)
    assert not torch.equal(*parts)
    assert torch.equal(parts[0] + parts[1], reference((0,))[1][tie])


def test_what_goes_from_leg_to_leg_are_tuples_of_any_dtypes():
    stage = whole_stage(dtype=torch.bfloat16)
    x, tokens = stage.forward(1, 0, 0, 2, (), (), ALL)
    assert (x.dtype, x.requires_grad) == (torch.bfloat16, True)
    assert (tokens.dtype, tokens.requires_grad) == (torch.int64, False)
    received = (x.detach().clone(), tokens.clone())
    (loss,) = stage.forward(1, 0, 2, LAYERS, received, (True, False), ALL)
    assert loss.dtype == torch.float32
    (gradient,) = stage.backward_input(1, 0, 2, LAYERS, ())
    assert (gradient.dtype, gradient.shape) == (x.dtype, x.shape)
    assert stage.backward_input(1, 0, 0, 2, (gradient,)) == ()


def test_what_a_step_leaves_under_way_is_forgotten():
    stage = whole_stage()
    stage.forward(1, 3, 0, LAYERS, (), (), ALL)
    stage.drop_passes()
    with pytest.raises(KeyError):
        stage.backward_input(1, 3, 0, LAYERS, ())
    compute([stage], [(0, 0, LAYERS)], 1)
    stage.gradients.begin()
    for micro_batch in range(MICRO_BATCHES):
        compute([stage], [(0, 0, LAYERS)], micro_batch)
    assert same_sums(sums_of([stage]), reference()[1])


def test_the_gradient_is_that_of_the_mean_loss_of_the_whole_batch():
    losses, sums = alone(dropout=False)
    model, source = Whole(layers_of()), Rows()
    ids = [i for micro_batch in range(MICRO_BATCHES) for i in source.ids(1, micro_batch)]
    inputs, targets = source.batch(ids)
    loss = model.loss_sum(model(inputs), targets) / targets.numel()
    loss.backward()
    assert sum(losses.values()) == pytest.approx(loss.item(), rel=1e-5)
    table = layers_of().table
    flat = torch.cat([sums[unit] for unit in range(len(table.users))])
    for parameter in table.parameters:
        layer, name = parameter.uses[0]
        wanted = model.stack[layer].get_parameter(name).grad.flatten()
        found = flat[parameter.start : parameter.stop].double() * 2.0**-44
        torch.testing.assert_close(found.float(), wanted, rtol=1e-4, atol=1e-7)


def test_dropout_is_in_force():
    assert alone((0,), dropout=False)[0] != reference((0,))[0]


# -- what is held ----------------------------------------------------------------------------------------------


def test_layers_that_stay_keep_their_modules_weights_and_sums():
    stage = hold(empty_stage(), [0, 1, 2], [(0, 1), (2,), (5,)])
    compute([stage, whole_stage()], [(0, 0, 3), (1, 3, LAYERS)], 0)
    before, buffer = stage.weights.unit(2), stage.gradients.sums[2,].buffer
    expected: Sums = sums_of([stage])
    stage.hold([1, 2, 3], [(1,), (2,), (3,)], 0)
    assert stage.held == (1, 2, 3)
    assert stage.weights.unit(2) is before
    assert stage.gradients.sums[2,].buffer is buffer
    assert torch.equal(stage.weights.unit(1), stage.layers.initial(1))
    assert stage.weights.versions[stage.weights.active].keys() == {1, 2}
    assert stage.gradients.aside.keys() == {0, 1, 5}
    assert same_sums({unit: part for unit, part in sums_of([stage]).items() if unit != 3}, expected)
    stage.weights.put(3, stage.layers.initial(3), 0)
    stage.select(0)
    compute([whole_stage(), stage], [(0, 0, 1), (1, 1, 4), (0, 4, LAYERS)], 1)
    assert stage.gradients.layers == {0: {0, 1, 2}, 1: {1, 2, 3}}


def test_holding_what_is_held_changes_nothing_but_what_is_under_way():
    stage = whole_stage()
    stage.forward(1, 0, 0, LAYERS, (), (), ALL)
    weights, sums = stage.weights, stage.gradients.sums
    stage.hold(range(LAYERS), weights.buckets.keys, 5)
    assert stage.weights is weights
    assert stage.gradients.sums is sums
    with pytest.raises(KeyError):
        stage.backward_input(1, 0, 0, LAYERS, ())


def test_a_layer_that_is_not_held_cannot_be_computed():
    with pytest.raises(KeyError):
        hold(empty_stage(), [0, 1]).forward(1, 0, 0, 3, (), (), ALL)


def test_selecting_a_version_changes_the_weights_in_use_and_nothing_else():
    stage, way = whole_stage(), [(0, 0, LAYERS)]
    before = compute([stage], way, 0)
    (key,) = stage.weights.buckets.keys
    aside = stage.weights.begin([key])
    stage.weights.flat(key, aside).copy_(torch.cat([stage.weights.unit(unit) for unit in key])).mul_(1.5)
    stage.weights.filled(key, aside, 1)
    assert compute([stage], way, 0) == before
    stage.select(1)
    assert compute([stage], way, 0) != before
    stage.select(0)
    assert compute([stage], way, 0) == before


# -- what is refused -------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Token ids to logits, through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding.from_pretrained(torch.eye(11), freeze=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.token(tokens)


class Toy:
    """Logits, and behind them a layer that is given."""

    def __init__(self, last: nn.Module) -> None:
        self._last = last

    def layers(self) -> list[nn.Module]:
        return [Logits(), self._last]

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output.flatten(0, 1), targets.flatten(), reduction="sum")


class Loud(nn.Module):
    """Adds a multiple of a parameter to the logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.quiet, self.loud, self.factor = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slope = torch.zeros_like(x)
        slope[..., 0] = self.factor
        return x + self.quiet + self.loud * slope


@pytest.mark.parametrize(
    ("factor", "told"),
    [(1e6, r"1.loud: micro-batch 4 has a gradient of [\d.e+]+"), (torch.nan, "0.token.weight: .* nan")],
)
def test_a_gradient_out_of_range_names_parameter_micro_batch_and_value(factor, told):
    stage = whole_stage(layers_of(Toy(Loud(factor))))
    stage.forward(1, 4, 0, 2, (), (), ((0, 2),))
    stage.backward_input(1, 4, 0, 2, ())
    with pytest.raises(NumericsError, match=rf"^{told}; .*optimizer.lr"):
        stage.backward_weight(4, 0, 2)
    assert stage.gradients.layers == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_added_at_once_is_what_was_put_off(dtype):
    stages = [whole_stage(layers_of(), dtype=dtype) for _ in range(2)]
    missing = ((0, 1), (2, LAYERS))
    for stage, at_once in zip(stages, (False, True), strict=True):
        for micro_batch in range(MICRO_BATCHES):
            stage.forward(1, micro_batch, 0, LAYERS, (), (), missing)
            stage.backward_input(1, micro_batch, 0, LAYERS, (), at_once=at_once)
            stage.backward_weight(micro_batch, 0, LAYERS)
    assert same_sums(sums_of([stages[0]]), sums_of([stages[1]]))


def test_parameters_that_nothing_uses_have_zero_gradients():
    class Idle(nn.Linear):
        def forward(self, x):
            return x

    stage = whole_stage(layers_of(Toy(Idle(2, 2))))
    compute([stage], [(0, 0, 2)], 0)
    sums = sums_of([stage])
    assert sums[0].any()
    assert not sums[1].any()
    assert stage.gradients.layers == {0: {0, 1}}


class Drawing(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.1)


def test_layers_that_draw_by_call_count_are_refused_when_they_do():
    stage = whole_stage(layers_of(Toy(Drawing())))
    x = stage.forward(1, 0, 0, 1, (), (), ((0, 2),))
    with pytest.raises(ConfigError, match=r"layers 1-1'?: draw by call count; use .*KeyedDropout"):
        stage.forward(1, 0, 1, 2, tuple(part.detach() for part in x), (True,), ((0, 2),))


@pytest.mark.parametrize(
    "layer",
    [spectral_norm(nn.Linear(11, 11)), nn.InstanceNorm1d(5, track_running_stats=True)],
    ids=["spectral", "norm"],
)
def test_layers_that_keep_something_from_one_micro_batch_to_the_next_are_refused(layer):
    stage = whole_stage(layers_of(Toy(layer)))
    with pytest.raises(ConfigError, match=r"layers 0-1'?: change buffers; keep nothing"):
        stage.forward(1, 0, 0, 2, (), (), ((0, 2),))


def test_buffers_that_are_only_read_or_made_on_first_use_are_welcome():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.arange(11.0))
            self.cached = None

        def forward(self, x):
            self.cached = self.shift * 2 if self.cached is None else self.cached
            return x + self.cached

    stage = whole_stage(layers_of(Toy(Shifted())))
    assert compute([stage], [(0, 0, 2)], 0) == compute([stage], [(0, 0, 2)], 0)


def test_what_cannot_travel_from_layer_to_layer_is_refused():
    class Named(nn.Module):
        def forward(self, x):
            return x, "a name"

    stage = whole_stage(layers_of(Toy(Named())))
    with pytest.raises(ConfigError, match=r"Tensor, str.*must give a tensor or a tuple of tensors"):
        stage.forward(1, 0, 0, 2, (), (), ((0, 2),))
