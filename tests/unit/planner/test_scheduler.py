"""Plans for whoever is left: everything is computed and held, by those who can, and says why."""

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import config_of, jobs, model_of, plan_of, view_of

from elaswave.errors import ConfigError
from elaswave.planner.plan import Task
from elaswave.planner.scheduler import make_plan

MANY = settings(max_examples=200, deadline=None)


def computed(tasks: tuple[Task, ...]) -> list[tuple[int, int]]:
    return [(task.micro_batch, i) for task in tasks for leg in task.legs for i in range(leg.start, leg.stop)]


@MANY
@given(jobs())
def test_every_layer_of_every_micro_batch_is_computed_once(job):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    assert computed(plan.tasks) == [(i, k) for i in range(config.micro_batches) for k in range(profile.num_layers)]
    for task in plan.tasks:
        assert task.missing == ((0, profile.num_layers),)
        assert all(leg.start < leg.stop for leg in task.legs)
        assert all(first.member != second.member for first, second in pairwise(task.legs))


@MANY
@given(jobs())
def test_members_hold_what_their_stage_computes_in_their_team(job):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    stages = config.parallelism.stages
    of_rank = tuple(tuple(i for i, rank in enumerate(view.ranks()) if rank % stages == s) for s in range(stages))
    if not config.parallelism.fluid:
        assert plan.stages == of_rank
    stage_of = {member: stage for stage, members in enumerate(plan.stages) for member in members}
    place = {member: (team, stage_of[member]) for team, mine in enumerate(plan.teams) for member in mine}
    assert sorted(place) == list(range(len(plan.worker_ids)))
    of_place = {}
    for task in plan.tasks:
        assert len({place[leg.member][0] for leg in task.legs}) == 1
        for leg in task.legs:
            of_place.setdefault(place[leg.member], set()).update(range(leg.start, leg.stop))
    for member, layers in enumerate(plan.layers):
        assert set(layers) == of_place.get(place[member], set(layers))
        assert layers == tuple(sorted(layers))
        assert layers, "a worker without layers is of no use"


@MANY
@given(jobs())
def test_every_unit_is_in_one_bucket_whose_members_are_its_holders(job):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    units = [unit for bucket in plan.buckets for unit in bucket.units]
    assert sorted(units) == list(range(len(profile.users)))
    assert [bucket.units[0] for bucket in plan.buckets] == sorted(bucket.units[0] for bucket in plan.buckets)
    assert len({bucket.members for bucket in plan.buckets}) == len(plan.buckets)
    for bucket in plan.buckets:
        assert bucket.units == tuple(sorted(bucket.units))
        for unit in bucket.units:
            users = set(profile.users[unit])
            assert bucket.members == tuple(i for i, layers in enumerate(plan.layers) if users & set(layers))


@MANY
@given(jobs())
def test_micro_batches_are_those_of_the_legs(job):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    for member, ids in enumerate(plan.micro_batches):
        assert ids == tuple(t.micro_batch for t in plan.tasks if any(leg.member == member for leg in t.legs))


@MANY
@given(jobs(), st.sets(st.integers(0, 13), min_size=1))
def test_a_plan_does_not_depend_on_what_was_before(job, ranks):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    assert plan == make_plan(config, None, view, profile)
    after = make_plan(config, view_of(ranks, epoch=1), view, profile)
    assert dataclasses.replace(after, reason=plan.reason) == plan
    assert after.reason.endswith(plan.reason)


@pytest.mark.parametrize("rank", range(7))
@pytest.mark.parametrize("fluid", [False, True])
def test_a_lone_survivor_does_everything(rank: int, fluid: bool):
    plan = plan_of([rank], [1.0] * 9, stages=3, virtual_stages=2, fluid=fluid)
    assert plan.layers == (tuple(range(9)),)
    assert all([(leg.member, leg.start, leg.stop) for leg in task.legs] == [(0, 0, 9)] for task in plan.tasks)
    assert [(bucket.units, bucket.members) for bucket in plan.buckets] == [(tuple(range(9)), (0,))]


@pytest.mark.parametrize("lost", [[], [3], [0, 7]])
def test_members_belong_to_the_stage_of_their_rank_where_nobody_need_move(lost: list[int]):
    plan = plan_of(set(range(12)) - set(lost), [1.0] * 16, 24, stages=4, fluid=True)
    ranks = [rank for rank in range(12) if rank not in lost]
    assert plan.stages == tuple(tuple(i for i, rank in enumerate(ranks) if rank % 4 == s) for s in range(4))


def test_a_replica_that_lost_nobody_keeps_its_layers():
    before = plan_of(range(12), [1.0] * 16, 24, stages=4, fluid=True)
    after = plan_of(set(range(12)) - {5}, [1.0] * 16, 24, stages=4, fluid=True)
    assert after.teams == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9, 10))
    assert [after.layers[i] for i in (0, 1, 2, 3, 7, 8, 9, 10)] == [
        before.layers[i] for i in (0, 1, 2, 3, 8, 9, 10, 11)
    ]
    counts = [len(ids) for ids in after.micro_batches]
    assert counts[4] < counts[0]


def test_survivors_of_two_replicas_make_a_whole_one():
    plan = plan_of([0, 2, 5, 7], [1.0] * 16, 8, stages=4, fluid=True)
    assert plan.stages == ((0,), (2,), (1,), (3,))
    assert plan.teams == ((0, 1, 2, 3),)


def test_a_micro_batch_stays_in_one_replica_of_a_full_grid():
    plan = plan_of(range(12), [1.0] * 8, 8, stages=4)
    for task in plan.tasks:
        replica = task.micro_batch % 3
        assert [leg.member for leg in task.legs] == [4 * replica + stage for stage in range(4)]


def test_a_stage_keeps_a_micro_batch_in_all_its_chunks():
    plan = plan_of([0, 1, 2, 3, 4], [1.0] * 9, 8, stages=2, virtual_stages=3)
    for task in plan.tasks:
        assert len({leg.member for leg in task.legs}) == 2
        assert len(task.legs) == 6


def test_a_shared_layer_is_summed_by_both_neighbours():
    plan = plan_of(range(6), [1.0] * 10, 32, stages=3, fluid=True)
    assert plan.layers[:3] == ((0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9))
    assert {bucket.units: bucket.members for bucket in plan.buckets}[(3,)] == (0, 1, 3, 4)
    assert len({task.legs[0].stop for task in plan.tasks}) == 2


def test_fluid_cuts_are_not_taken_where_they_do_not_help():
    fluid, whole = (plan_of(range(6), [1.0] * 9, 8, stages=3, fluid=flag) for flag in (True, False))
    assert (fluid.tasks, fluid.layers, fluid.buckets) == (whole.tasks, whole.layers, whole.buckets)


def test_a_stage_whose_share_is_less_than_a_layer_has_one_all_the_same():
    plan = plan_of(range(3), [9.0, 0.1, 0.1], 1, stages=3, fluid=True)
    assert plan.layers == ((0,), (1,), (2,))


def test_a_tied_weight_is_held_by_all_that_use_it():
    plan = make_plan(config_of(4, stages=2), None, view_of(range(4)), model_of([1.0] * 4, [(0, 3)]))
    assert [(bucket.units, bucket.members) for bucket in plan.buckets] == [
        ((0, 1), (0, 2)),
        ((2, 3), (1, 3)),
        ((4,), (0, 1, 2, 3)),
    ]


def test_more_chunks_than_layers_are_refused():
    with pytest.raises(ConfigError, match="10 layers; use at most 10 stages") as caught:
        plan_of(range(4), [1.0] * 10, stages=11)
    assert caught.value.key == "parallelism.stages"
    with pytest.raises(ConfigError, match="10 layers; use at most 3 stages of 3 pieces"):
        plan_of(range(4), [1.0] * 10, stages=4, virtual_stages=3)


def test_without_a_model_the_job_is_one_layer():
    plan = make_plan(config_of(8), None, view_of(range(3)))
    assert plan.layers == ((0,),) * 3
    assert plan.micro_batches == ((0, 3, 6), (1, 4, 7), (2, 5))
    assert plan.index_of("w2") == 2
    assert plan.domains == ("n0", "n0", "n0")


@pytest.mark.parametrize(
    ("ranks", "parallelism", "reason"),
    [
        ([0, 1, 2, 4], {}, "without rank 3, without rank 5: 8 micro-batches over 4 workers (2 each)"),
        (range(7), {}, "with rank 6: 8 micro-batches over 7 workers (1-2 each)"),
        (
            [0, 1, 2, 4, 5],
            {"stages": 3},
            "without rank 3: stages of 1+2+2 workers, layers 0-1 | 2-5 | 6-9, 8 micro-batches (4-8 each)",
        ),
        (
            [0, 2, 3, 5],
            {"stages": 3},
            "without rank 1, without rank 4: stages of 2+0+2 workers, layers 0-4 | none | 5-9, "
            "8 micro-batches (4 each)",
        ),
        (
            range(6),
            {"stages": 2, "virtual_stages": 5},
            "same members: stages of 3+3 workers, layers 0, 2, 4, 6, 8 | 1, 3, 5, 7, 9, 8 micro-batches (2-3 each)",
        ),
    ],
)
def test_a_plan_says_what_it_does_and_why(ranks, parallelism, reason):
    before, profile = view_of(range(6), epoch=1), model_of([1.0] * 10)
    assert make_plan(config_of(8, **parallelism), before, view_of(ranks), profile).reason == reason
