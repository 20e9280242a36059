"""Units lie one behind the other in the buffers of their bucket, and keep their content when buckets change."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elaswave.numerics import ExactAccumulator
from elaswave.pipeline.buckets import Buckets, Key, Place
from elaswave.pipeline.gradients import Gradients, spans_of
from elaswave.pipeline.table import Slot, tabulate
from elaswave.pipeline.weights import Weights
from elaswave.snapshot.verify import digest

TABLE = tabulate(
    [
        (Slot("token", (3, 2), "token"), Slot("position", (2, 2))),
        (Slot("weight", (2, 2)), Slot("bias", (2,))),
        (),
        (Slot("norm", (2,)), Slot("logits", (3, 2), "token")),
    ],
    ["0", "1", "2", "3"],
)
UNITS = len(TABLE.users)
SIZES = TABLE.unit_sizes()


@st.composite
def keys(draw: st.DrawFn) -> list[Key]:
    """Any units in any buckets."""
    homes = draw(st.lists(st.integers(-1, 2), min_size=UNITS, max_size=UNITS))
    found = [tuple(unit for unit in range(UNITS) if homes[unit] == home) for home in range(3)]
    return draw(st.permutations([key for key in found if key]))


def of_unit(unit: int, factor: float = 1.0) -> torch.Tensor:
    start, stop = TABLE.unit_bounds[unit]
    return torch.arange(start, stop) * factor


# -- buckets ---------------------------------------------------------------------------------------------------


def test_the_table_of_these_tests():
    assert SIZES == (4, 6, 0, 2, 6)
    assert TABLE.users == ((0,), (1,), (2,), (3,), (0, 3))


@given(keys())
def test_places_tile_each_bucket_in_order_of_units(mine):
    buckets = Buckets(TABLE, mine)
    assert buckets.keys == tuple(mine)
    assert buckets.units == tuple(sorted(unit for key in mine for unit in key))
    for key in mine:
        places = [buckets.of_unit(unit) for unit in key]
        assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
        assert places[-1].stop == buckets.size(key)
        assert [(place.bucket, place.stop - place.start) for place in places] == [(key, SIZES[unit]) for unit in key]


@given(keys())
def test_parameters_lie_in_their_unit_in_flat_order(mine):
    buckets = Buckets(TABLE, mine)
    for index, parameter in enumerate(TABLE.parameters):
        if parameter.unit in buckets.units:
            unit, place = buckets.of_unit(parameter.unit), buckets.of_parameter(index)
            begin = TABLE.unit_bounds[parameter.unit][0]
            assert place == Place(
                unit.bucket, unit.start + parameter.start - begin, unit.start + parameter.stop - begin
            )


def test_what_is_not_held_has_no_place():
    buckets = Buckets(TABLE, [(1,)])
    with pytest.raises(KeyError):
        buckets.of_unit(0)
    with pytest.raises(KeyError):
        buckets.of_parameter(0)


# -- weights ---------------------------------------------------------------------------------------------------


def weights_of(mine: list[Key], dtype: torch.dtype = torch.float32, version: int | None = 0) -> Weights:
    weights = Weights(Buckets(TABLE, mine), dtype)
    for unit in weights.buckets.units if version is not None else ():
        weights.put(unit, of_unit(unit), version)
    return weights


def advance(weights: Weights, version: int, factor: float) -> None:
    """Fill the slot that is not in use, as a step does."""
    aside = weights.begin(weights.buckets.keys)
    for key in weights.buckets.keys:
        weights.flat(key, aside).copy_(torch.cat([of_unit(unit, factor) for unit in key]))
        weights.filled(key, aside, version)


@given(keys(), keys(), st.booleans())
def test_units_that_stay_keep_their_values_and_others_are_missing(mine, later, stepped):
    before = weights_of(mine)
    advance(before, 1, 2.0)
    before.active = 1
    version, factor = (1, 2.0) if stepped else (0, 1.0)
    weights = Weights.carried_over(before, Buckets(TABLE, later), version)
    for unit in weights.buckets.units:
        if unit in before.buckets.units:
            assert torch.equal(weights.unit(unit), of_unit(unit, factor))
            assert weights.versions[weights.active][unit] == version
        else:
            assert unit not in weights.versions[0].keys() | weights.versions[1].keys()
    for key in set(mine) & set(later):
        for slot in range(2):
            for unit in key:
                assert (found := weights.unit(unit, slot)) is None or found is before.unit(unit, slot)


def test_only_the_wanted_version_is_carried_into_other_buckets():
    before = weights_of([(0, 1)])
    advance(before, 1, 2.0)
    weights = Weights.carried_over(before, Buckets(TABLE, [(0,), (1,)]), 1)
    assert weights.versions[weights.active] == {0: 1, 1: 1}
    assert weights.versions[1 - weights.active] == {}
    nothing = Weights.carried_over(before, Buckets(TABLE, [(0,), (1,)]), 5)
    assert nothing.versions == [{}, {}]


def test_the_slot_of_a_version_is_the_one_with_most_of_it():
    weights = weights_of([(0, 1, 3)])
    assert weights.slot_of(0) == 0
    assert weights.slot_of(7) == 0
    advance(weights, 1, 2.0)
    assert weights.slot_of(1) == 1
    weights.active = 1
    assert (weights.slot_of(7), weights.slot_of(0), weights.slot_of(1)) == (1, 0, 1)
    weights.put(3, of_unit(3), 0)
    assert weights.slot_of(0) == 0
    assert weights.slot_of(1) == 1


def test_a_put_is_rounded_and_only_in_the_slot_in_use():
    weights = weights_of([(0, 1)], torch.bfloat16, None)
    values = torch.full((SIZES[1],), 1.001)
    weights.put(1, values, 4)
    assert torch.equal(weights.unit(1), values.bfloat16())
    assert weights.versions == [{1: 4}, {}]
    assert weights.unit(0) is None
    assert weights.unit(1, 1) is None
    truth = [0, digest((TABLE.unit_bounds[1],), {"master": values.bfloat16()})]
    assert weights.damaged(4, truth, digest) == []
    assert weights.damaged(4, [0, truth[1] + 1], digest) == [1]
    assert weights.lacking(4) == [0]
    weights.give_up([1], 4)
    assert weights.lacking(4) == [0, 1]


def test_what_is_about_to_be_overwritten_has_no_version():
    weights = weights_of([(0, 1), (3,)])
    advance(weights, 1, 2.0)
    assert weights.begin([(3,)]) == 1
    assert weights.versions == [{0: 0, 1: 0, 3: 0}, {0: 1, 1: 1}]
    weights.filled((3,), 1, 2)
    assert weights.versions[1] == {0: 1, 1: 1, 3: 2}


def test_a_parameter_is_a_view_in_its_own_shape():
    weights = weights_of([(1, 3)])
    bias = next(i for i, parameter in enumerate(TABLE.parameters) if parameter.name == "1.bias")
    weights.parameter(bias, 0).fill_(-1.0)
    assert weights.unit(1)[-2:].tolist() == [-1.0, -1.0]
    assert weights.parameter(bias - 1, 0).shape == (2, 2)


# -- gradients -------------------------------------------------------------------------------------------------


def gradients_of(mine: list[Key]) -> Gradients:
    return Gradients(Buckets(TABLE, mine), ExactAccumulator)


def add(gradients: Gradients, micro_batch: int, layers: list[int]) -> None:
    """One in every element of the units of these layers, per layer that uses it."""
    for layer in layers:
        for unit, users in enumerate(TABLE.users):
            if layer in users:
                place = gradients.buckets.of_unit(unit)
                gradients.sums[place.bucket].add(torch.ones(SIZES[unit]), micro_batch, place.start)
    gradients.record(micro_batch, layers)


def total(gradients: Gradients, unit: int) -> torch.Tensor:
    """What is here of a unit, set aside or not."""
    found = gradients.aside.get(unit, torch.zeros(SIZES[unit], dtype=torch.int64)).clone()
    if unit in gradients.buckets.units:
        place = gradients.buckets.of_unit(unit)
        found += gradients.sums[place.bucket].buffer[place.start : place.stop]
    return gradients.to_float(found, torch.empty(len(found)))


@given(st.lists(keys(), min_size=1, max_size=4), st.data())
def test_sums_outlive_any_change_of_buckets(layouts, data):
    gradients = gradients_of(layouts[0])
    expected = torch.zeros(UNITS)
    for number, mine in enumerate(layouts):
        gradients.hold(Buckets(TABLE, mine))
        able = [n for n in range(4) if all(u in gradients.buckets.units for u in range(UNITS) if n in TABLE.users[u])]
        layers = data.draw(st.lists(st.sampled_from(able), unique=True)) if able else []
        add(gradients, number, layers)
        for layer in layers:
            expected += torch.tensor([float(layer in users) for users in TABLE.users])
    for unit in range(UNITS):
        assert torch.equal(total(gradients, unit), expected[unit].expand(SIZES[unit]))
    assert all(expected[unit] for unit in gradients.aside)


def test_buckets_that_stay_are_not_set_aside():
    gradients = gradients_of([(0, 4), (1,)])
    add(gradients, 0, [0, 1])
    kept = gradients.sums[1,]
    gradients.hold(Buckets(TABLE, [(1,), (3,), (0,)]))
    assert gradients.sums[1,] is kept
    assert gradients.aside.keys() == {0, 4}
    assert not gradients.sums[0,].buffer.any()


def test_what_was_never_touched_is_not_set_aside():
    gradients = gradients_of([(0, 1, 3, 4)])
    add(gradients, 0, [0])
    gradients.hold(Buckets(TABLE, [(0,), (1,)]))
    assert gradients.aside.keys() == {0, 4}


def test_a_step_begins_without_sums_and_ends_without_records():
    gradients = gradients_of([(1,), (3,), (0, 4)])
    add(gradients, 0, [0, 1])
    gradients.losses[0] = 1.5
    gradients.hold(Buckets(TABLE, [(1,)]))
    gradients.forget_records()
    assert (gradients.losses, gradients.layers, gradients.aside) == ({}, {}, {})
    assert gradients.sums[1,].buffer.any()
    gradients.hold(Buckets(TABLE, [(0,)]))
    assert gradients.aside == {}, "sums of a step that is over are of no use"
    add(gradients, 1, [])
    gradients.begin()
    assert not gradients.sums[0,].buffer.any()
    assert gradients.spans() == {}


def test_records_are_told_as_ranges():
    gradients = gradients_of([])
    gradients.record(4, [3, 0])
    gradients.record(4, [1])
    gradients.record(2, [])
    assert gradients.spans() == {4: ((0, 2), (3, 4)), 2: ()}


@given(st.sets(st.integers(0, 30)))
def test_ranges_are_as_few_as_possible(numbers):
    spans = spans_of(numbers)
    assert [n for start, stop in spans for n in range(start, stop)] == sorted(numbers)
    assert all(first[1] < second[0] for first, second in pairwise(spans))


def test_memory_of_sums_that_are_over_is_used_again():
    gradients = gradients_of([(0, 1)])
    memory = gradients.sums[0, 1].buffer.data_ptr()
    add(gradients, 0, [1])
    gradients.forget_records()
    gradients.hold(Buckets(TABLE, [(0, 1, 3)]))
    assert gradients.sums[0, 1, 3].buffer.data_ptr() == memory
    assert not gradients.sums[0, 1, 3].buffer.any()


def test_a_change_of_buckets_copies_no_weights_and_uses_memory_again():
    before = weights_of([(0, 1)])
    advance(before, 1, 2.0)
    before.active = 1
    advance(before, 2, 3.0)
    before.active = 0
    memory = {before.flat((0, 1), slot).data_ptr() for slot in range(2)}
    weights = Weights.carried_over(before, Buckets(TABLE, [(0, 1, 3)]), 2)
    assert weights.unit(0) is before.unit(0)
    weights.put(3, of_unit(3), 2)
    found = set()
    for version in (3, 4):
        advance(weights, version, 1.0)
        weights.active = 1 - weights.active
        found.add(weights.flat((0, 1, 3), weights.active).data_ptr())
        assert torch.equal(weights.unit(3), of_unit(3))
    assert found == memory
