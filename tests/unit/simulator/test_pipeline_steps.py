"""Steps under a virtual clock: as the timetable says, and later by what messages and updates take."""

import pytest
from hypothesis import given, settings
from support.planning import jobs, model_of, plan_of

from elaswave.config import Parallelism, Schedule
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import of_plan
from elaswave.simulator.comparison import PAPER, Grid, compare
from elaswave.simulator.pipeline import Machine, moved, steps


@settings(max_examples=100, deadline=None)
@given(jobs())
def test_without_messages_a_step_takes_as_long_as_its_timetable(job):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    table = of_plan(plan, plan.tasks, profile.costs, parallel.schedule, parallel.virtual_stages)
    period = steps(plan, profile, parallel).period
    if parallel.schedule is Schedule.SPLIT:
        assert period == pytest.approx(table.finish, rel=1e-5)
    else:  # the timetable passes gradients of inputs on when those of weights are done, workers do so before
        assert max(table.busy) * (1 - 1e-5) <= period <= table.finish * (1 + 1e-5)


def test_messages_and_updates_take_time():
    plan, profile = plan_of(range(4), [1.0] * 4, 1, stages=4), model_of([1.0] * 4)
    found = steps(plan, profile, Parallelism(stages=4), Machine(message=0.5, update=2.0))
    assert found.period == 9 + 6 * 0.5 + 2
    assert found.busy == (3 / 14,) * 4
    assert found.held == 1


def test_a_stage_that_need_not_wait_begins_the_next_step_before_the_others():
    plan, profile = plan_of(range(4), [1.0] * 4, 8, stages=4), model_of([1.0] * 4)
    parallel = Parallelism(stages=4, schedule=Schedule.SPLIT)
    apart = steps(plan, profile, parallel, Machine(update=3.0), staggered=True).period
    assert apart <= steps(plan, profile, parallel, Machine(update=3.0)).period


def test_what_a_member_must_fetch():
    profile = model_of([1.0] * 6, [(0, 5)])
    before = plan_of(range(6), [1.0] * 6, 8, stages=3)
    assert moved(before, before, profile) == (0,) * 6
    after = plan_of([0, 1, 3, 4, 5], [1.0] * 6, 8, stages=3, fluid=True)
    assert sum(moved(before, after, profile)[2:]) == 0  # the other replica keeps its layers


def test_the_papers_grid_after_the_loss_of_a_node():
    for lost in range(PAPER.ranks):
        found = compare(PAPER, [lost], Schedule.SPLIT)
        plain = compare(PAPER, [lost], Schedule.ONE_F_ONE_B)
        ours = found["elaswave"]
        assert ours.of_bound >= 0.97
        assert ours.throughput >= 1.7 * max(found["torchft"].throughput, plain["torchft"].throughput)
        assert ours.throughput >= 1.5 * found["recycle"].throughput
        assert ours.throughput > found["oobleck"].throughput


@pytest.mark.parametrize(
    ("grid", "lost"),
    [
        (Grid(replicas=4, stages=4, layers=32, micro_batches=256), [4]),
        (Grid(replicas=4, stages=4, layers=32, micro_batches=256), [12, 15]),
        (Grid(replicas=8, stages=12, layers=48, micro_batches=384), [5, 33, 49, 53]),
        (Grid(replicas=12, stages=8, layers=48, micro_batches=768), [49, 53]),
    ],
    ids=lambda value: f"{value.replicas}x{value.stages}" if isinstance(value, Grid) else str(len(value)),
)
def test_other_grids_stay_near_the_bound_and_ahead(grid, lost):
    found = compare(grid, lost, Schedule.SPLIT)
    assert found["elaswave"].of_bound >= 0.95
    assert found["elaswave"].throughput == max(outcome.throughput for outcome in found.values())
