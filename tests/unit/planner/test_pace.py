"""A timetable run by members of other speeds: as simulated at equal ones, also for what is left of a step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import jobs, plan_of

from elaswave.config import Schedule
from elaswave.planner.dataflow import retask
from elaswave.planner.pace import finish
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import timetable


@settings(max_examples=100, deadline=None)
@given(jobs(), st.data())
def test_at_equal_speed_a_step_ends_as_simulated_and_never_earlier_at_a_lower_one(job, data):
    config, view, profile = job
    plan, parallel, size = make_plan(config, None, view, profile), config.parallelism, len(view.members)
    layers = st.sets(st.integers(0, profile.num_layers - 1))
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), layers))
    for tasks in (plan.tasks, retask(plan, missing, profile.costs)):
        if not tasks:
            continue
        table = timetable(tasks, plan.stages, profile.costs, parallel.schedule, size, parallel.virtual_stages)
        ends = finish(tasks, table.ops, profile.costs, parallel.schedule)
        assert ends([1.0] * size) == pytest.approx(table.finish, rel=1e-5)
        slowdowns = data.draw(st.lists(st.floats(1, 3), min_size=size, max_size=size))
        assert table.finish * (1 - 1e-5) <= ends(slowdowns) <= table.finish * max(slowdowns) * (1 + 1e-5)


def test_only_who_is_on_the_longest_path_delays_the_step():
    plan = plan_of(range(4), [1.0, 1.0, 2.0], 8, stages=2)
    table = timetable(plan.tasks, plan.stages, [1.0, 1.0, 2.0], Schedule.SPLIT, 4)
    ends = finish(plan.tasks, table.ops, [1.0, 1.0, 2.0], Schedule.SPLIT)
    assert ends([2.0, 1.0, 1.0, 1.0]) > ends([1.0] * 4)
    assert finish([], [[], []], [1.0], Schedule.SPLIT)([1.0, 1.0]) == 0.0


def test_lists_that_wait_for_each_other_are_refused():
    plan = plan_of(range(2), [1.0, 1.0], 2, stages=2)
    table = timetable(plan.tasks, plan.stages, [1.0, 1.0], Schedule.ONE_F_ONE_B, 2)
    backwards = [tuple(reversed(ops)) for ops in table.ops]
    with pytest.raises(ValueError, match="wait for each other"):
        finish(plan.tasks, backwards, [1.0, 1.0], Schedule.ONE_F_ONE_B)
