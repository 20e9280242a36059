"""Sharing micro-batches: each exactly once, and no worker slower than it must be."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import jobs, plan_of

from elaswave.planner.dataflow import passes, retask, route
from elaswave.planner.scheduler import make_plan


@settings(max_examples=200, deadline=None)
@given(jobs(), st.data())
def test_exactly_what_is_missing_is_computed_again(job, data: st.DataObject) -> None:
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    layers = st.sets(st.integers(0, profile.num_layers - 1))
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), layers))
    tasks = retask(plan, missing, profile.costs)
    found = {task.micro_batch: [k for a, b in task.missing for k in range(a, b)] for task in tasks}
    assert found == {micro_batch: sorted(layers) for micro_batch, layers in missing.items() if layers}
    assert list(found) == sorted(found)
    for task in tasks:
        assert [k for leg in task.legs for k in range(leg.start, leg.stop)] == list(range(profile.num_layers))
        assert all(set(range(leg.start, leg.stop)) <= set(plan.layers[leg.member]) for leg in task.legs)
        assert all(first.member != second.member for first, second in pairwise(task.legs))
        assert all(a < b for a, b in task.missing)
        assert all(first[1] < second[0] for first, second in pairwise(task.missing))


@given(jobs())
def test_a_step_of_which_everything_is_missing_is_the_planned_one(job) -> None:
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    everything = dict.fromkeys(range(config.micro_batches), range(profile.num_layers))
    assert retask(plan, everything, profile.costs) == plan.tasks


def test_what_is_missing_is_shared_evenly_whoever_had_it_before() -> None:
    plan = plan_of(range(4), [1.0] * 4, 12, stages=2)
    tasks = retask(plan, dict.fromkeys([0, 2, 4, 6], range(4)))
    assert [[leg.member for leg in task.legs] for task in tasks] == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_little_that_is_missing_counts_little() -> None:
    plan = plan_of(range(2), [1.0] * 10, 4)
    tasks = retask(plan, {0: range(10), 1: [9], 2: [9], 3: range(10)})
    assert [task.legs[0].member for task in tasks] == [0, 1, 1, 1]


@pytest.mark.parametrize("missing", [{4: [0]}, {0: [4]}, {0: [-1]}])
def test_what_no_plan_contains_cannot_be_missing(missing: dict) -> None:
    with pytest.raises(ValueError, match="not in a plan of 4 layers"):
        retask(plan_of(range(2), [1.0] * 4, 4), missing)


def test_a_leg_costs_what_is_wanted_of_it() -> None:
    total = [0.0, 1.0, 3.0, 6.0, 10.0]
    assert passes(0, 2, ((0, 4),), total) == (3, 3, 3)
    assert passes(0, 2, ((2, 3),), total) == (3, 0, 0)
    assert passes(1, 3, ((2, 3),), total) == (5, 3, 3)
    assert passes(2, 4, ((0, 1), (3, 4)), total) == (7, 7, 4)


def test_a_slow_member_of_a_stage_gets_less() -> None:
    tasks = route([(0, 2, 4)] * 6, [(0, 1), (2,)], [1.0] * 4, speeds=[1.0, 0.5, 1.0])
    assert [task.legs[0].member for task in tasks] == [0, 1, 0, 0, 1, 0]


def test_layers_of_a_stage_without_members_are_refused() -> None:
    with pytest.raises(ValueError, match="stage 1 has layers"):
        route([(0, 2, 4)], [(0,), ()], [1.0] * 4)


@given(st.integers(1, 40), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_no_member_of_a_stage_has_more_than_one_micro_batch_more_than_another(
    total, sizes, data: st.DataObject
) -> None:
    names = iter(range(99))
    stages = [[next(names) for _ in range(size)] for size in sizes]
    middle = data.draw(
        st.lists(
            st.lists(st.integers(0, 5), min_size=len(sizes) - 1, max_size=len(sizes) - 1),
            min_size=total,
            max_size=total,
        )
    )
    cuts = [(0, *sorted(bounds), 5) for bounds in middle]
    costs = [1.0, 2.0, 4.0, 1.0, 3.0]
    load = dict.fromkeys(range(99), 0.0)
    for task in route(cuts, stages, costs):
        for leg in task.legs:
            load[leg.member] += sum(costs[leg.start : leg.stop])
    assert all(load[a] <= load[b] + sum(costs) for members in stages for a in members for b in members)
