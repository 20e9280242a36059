"""The plan as arrays is the plan of objects, member for member, and its loads are those of counting them out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import config_of, model_of, view_of

from elaswave.errors import ConfigError
from elaswave.planner.frequency import ClockProfile
from elaswave.planner.graph import fluid
from elaswave.planner.scale import (
    Dvfs,
    bound,
    drop_replicas,
    fluid_cuts,
    loads_of,
    plan_at_scale,
    reversed_place,
)
from elaswave.planner.scheduler import make_plan

MANY = settings(max_examples=150, deadline=None)


@st.composite
def grids(draw):
    """Stages, virtual stages, live ranks, costs, ties, micro-batches."""
    stages = draw(st.integers(1, 4))
    virtual = draw(st.integers(1, 3)) if stages > 1 else 1
    costs = draw(st.lists(st.sampled_from([1.0, 1.5, 3.0, 0.5]), min_size=stages * virtual, max_size=12))
    ranks = draw(st.sets(st.integers(0, 13), min_size=1))
    ties = draw(st.lists(st.lists(st.integers(0, len(costs) - 1), min_size=1, max_size=3), max_size=2))
    return stages, virtual, sorted(ranks), costs, ties, draw(st.integers(1, 12))


def alive_of(ranks):
    alive = np.zeros(14, bool)
    alive[list(ranks)] = True
    return alive


def counted(plan, costs):
    """What the busiest member of each stage has to do, found by looking at every micro-batch."""
    load: dict[int, float] = {}
    for micro_batch in range(plan.cuts.num_micro_batches):
        for rank, start, stop in plan.legs(micro_batch):
            load[rank] = load.get(rank, 0.0) + 3 * sum(costs[start:stop])
    return [max((load.get(int(rank), 0.0) for rank in ranks), default=0.0) for ranks in plan.members]


@MANY
@given(grids())
def test_whole_cuts_are_those_of_make_plan(grid):
    stages, virtual, ranks, costs, ties, micro_batches = grid
    profile = model_of(costs, ties)
    config = config_of(micro_batches, stages=stages, virtual_stages=virtual)
    expected = make_plan(config, None, view_of(ranks), profile)
    plan = plan_at_scale(alive_of(ranks), stages, profile, micro_batches, virtual_stages=virtual, use_fluid=False)
    assert [list(members) for members in plan.members] == [[ranks[i] for i in members] for members in expected.stages]
    assert [plan.legs(i) for i in range(micro_batches)] == [
        tuple((ranks[leg.member], leg.start, leg.stop) for leg in task.legs) for task in expected.tasks
    ]
    assert [
        (units, tuple(sorted(ranks.index(rank) for stage in where for rank in plan.members[stage])))
        for units, where in plan.buckets
    ] == [(bucket.units, bucket.members) for bucket in expected.buckets]
    assert plan.num_members == len(ranks)


@MANY
@given(grids())
def test_fluid_cuts_are_those_of_the_graph_planner(grid):
    stages, virtual, ranks, costs, _, micro_batches = grid
    counts = [sum(rank % stages == stage for rank in ranks) for stage in range(stages)]
    cuts = fluid_cuts(costs, counts * virtual, micro_batches)
    assert tuple(cuts.of(reversed_place(i, micro_batches)) for i in range(micro_batches)) == fluid(
        costs, counts * virtual, micro_batches
    )
    assert len({tuple(row) for row in cuts.bounds.tolist()}) == len(cuts.bounds)


@MANY
@given(grids())
def test_every_layer_of_every_micro_batch_once_and_loads_as_counted(grid):
    stages, virtual, ranks, costs, ties, micro_batches = grid
    profile = model_of(costs, ties)
    plan = plan_at_scale(alive_of(ranks), stages, profile, micro_batches, virtual_stages=virtual)
    seen: dict[int, set[int]] = {rank: set() for rank in ranks}
    for micro_batch in range(micro_batches):
        legs = plan.legs(micro_batch)
        assert [layer for _, start, stop in legs for layer in range(start, stop)] == list(range(len(costs)))
        for rank, _, _ in legs:
            seen[rank].add(plan.cuts.place(micro_batch))
    for rank in ranks:
        assert seen[rank] <= set(plan.places(rank))
    assert plan.loads.tolist() == pytest.approx(counted(plan, costs))
    assert plan.loads.max() >= bound(costs, len(ranks), micro_batches) * (1 - 1e-9)
    whole = plan_at_scale(alive_of(ranks), stages, profile, micro_batches, virtual_stages=virtual, use_fluid=False)
    assert plan.loads.max() <= whole.loads.max()


@MANY
@given(st.integers(1, 70))
def test_reversed_places_are_those_of_sorting(count):
    digits = max(count - 1, 1).bit_length()
    order = sorted(range(count), key=lambda i: int(f"{i:0{digits}b}"[::-1], 2))
    assert [reversed_place(number, count) for number in order] == list(range(count))


def test_clocks_are_one_for_each_stage():
    dvfs = Dvfs(range_mhz=tuple(range(500, 1201, 10)), profile=ClockProfile(nominal_mhz=1000))
    alive = np.ones(12, bool)
    alive[0] = False
    plan = plan_at_scale(alive, 3, model_of([1.0] * 9), 60, use_fluid=False, dvfs=dvfs)
    assert plan.clocks is not None
    assert plan.clocks.mhz == (710, 810, 1100)
    assert plan.clocks.step_s < plan.loads.max()
    assert plan.reason.startswith("11 of 12 workers, stages of 3-4, whole cuts: 81.8 % of the bound; clocks: 4 raised")


def test_pipelines_that_lack_a_worker_stand_still():
    alive = np.ones(12, bool)
    assert drop_replicas(alive, 3, [1.0] * 3, 12) == pytest.approx(9.0)
    alive[[4, 5]] = False
    assert drop_replicas(alive, 3, [1.0] * 3, 12) == pytest.approx(12.0)
    assert drop_replicas(np.zeros(12, bool), 3, [1.0] * 3, 12) == float("inf")


def test_a_rank_that_is_lost_has_no_share():
    plan = plan_at_scale(alive_of([0, 1, 3]), 2, model_of([1.0] * 4), 6)
    assert plan.places(3) == range(1, 6, 2)
    with pytest.raises(ValueError, match="rank 2 is not a member"):
        plan.places(2)
    with pytest.raises(ConfigError, match="capacities"):
        plan_at_scale(np.zeros(4, bool), 2, model_of([1.0] * 4), 6)


def test_loads_of_many_members_are_found_without_looking_at_them():
    counts = np.array([999_983, 1_000_000])
    loads = loads_of(fluid_cuts([1.0] * 5, counts.tolist(), 7_000_001), [1.0] * 5, counts)
    assert loads.max() < 1.15 * bound([1.0] * 5, int(counts.sum()), 7_000_001)
