"""Orders of operations: complete, free of deadlock, within their caps, and the known ones on full grids."""

from collections import Counter
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import jobs, plan_of, replay, wanted

from elaswave.config import Schedule
from elaswave.planner.dataflow import retask
from elaswave.planner.plan import Plan, Task
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import Op, Timetable, of_plan


def table(plan: Plan, schedule: Schedule, costs=None, tasks=None, virtual_stages=1) -> Timetable:
    tasks = plan.tasks if tasks is None else tasks
    costs = costs or [1.0] * plan.tasks[0].legs[-1].stop
    return of_plan(plan, tasks, costs, schedule, virtual_stages)


def words(ops: tuple[Op, ...], kinds: str = "FI") -> str:
    return " ".join(f"{op.kind}{op.micro_batch}" for op in ops if op.kind in kinds)


def idle(found: Timetable) -> float:
    return 1 - sum(found.busy) / len(found.busy) / found.finish


def most_at_once(tasks: tuple[Task, ...], found: Timetable, kinds: str) -> list[int]:
    """Per member the most legs between the begin of a forward and the last of their operations that is of `kinds`."""
    held, most = [0] * len(found.ops), [0] * len(found.ops)
    final = {(micro_batch, leg): kind for task in tasks for kind, micro_batch, leg in wanted(task) if kind in kinds}

    def visit(member: int, op: Op) -> None:
        last = final[op.micro_batch, op.leg]
        held[member] += (op.kind == "F" and last != "F") - (op.kind == last != "F")
        most[member] = max(most[member], held[member])

    replay(tasks, found.ops, visit)
    return most


@settings(max_examples=200, deadline=None)
@given(jobs(), st.data())
def test_every_operation_is_run_once_and_nobody_waits_for_ever(job, data):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    layers = st.lists(st.integers(0, profile.num_layers - 1), unique=True)
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), layers))
    for tasks in plan.tasks, retask(plan, missing, profile.costs):
        found = table(plan, parallel.schedule, profile.costs, tasks, parallel.virtual_stages)
        assert sorted(replay(tasks, found.ops)) == sorted(key for task in tasks for key in wanted(task))
        legs = {(task.micro_batch, i): leg for task in tasks for i, leg in enumerate(task.legs)}
        for member, ops in enumerate(found.ops):
            for op in ops:
                leg = legs[op.micro_batch, op.leg]
                assert (leg.member, leg.start, leg.stop) == (member, op.start, op.stop)


@settings(max_examples=200, deadline=None)
@given(jobs(), st.data())
def test_no_more_is_held_than_a_full_grid_would(job, data):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    if parallel.schedule is Schedule.GPIPE:
        return
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), st.just([0])))
    for tasks in plan.tasks, retask(plan, missing, profile.costs):
        found = table(plan, parallel.schedule, profile.costs, tasks, parallel.virtual_stages)
        waiting, held = most_at_once(tasks, found, "FI"), most_at_once(tasks, found, "FIW")
        for team, stages in enumerate(plan.stages_by_team()):
            mine = [task for task in tasks if task.legs[0].member in plan.teams[team]]
            for member, (to_wait, to_hold) in caps_of(stages, mine, parallel.virtual_stages).items():
                assert waiting[member] <= to_wait
                assert held[member] <= to_hold
        if parallel.schedule is Schedule.ONE_F_ONE_B:
            assert held == waiting


def caps_of(stages, tasks: list[Task], virtual_stages: int) -> dict[int, tuple[int, int]]:
    """By member of a team how many legs may wait for their `I` and be held: what a full grid needs, to its scale."""
    live = [members for members in stages if members]
    largest = max(map(len, live))
    counts = Counter((leg.member, i // (len(live) * largest)) for i, task in enumerate(tasks) for leg in task.legs)
    caps = {}
    for stage, members in enumerate(live):
        limits = [len(live) - stage, len(live)]
        if virtual_stages > 1:
            limits = [2 * (limit - 1) + (virtual_stages - 1) * len(live) + 1 for limit in limits]
        for member in members:
            whole_groups = max((count for (own, _), count in counts.items() if own == member), default=0)
            extra = whole_groups + 1 if virtual_stages > 1 else 1
            to_wait, to_hold = (max(extra, ceil(limit * largest / len(members))) for limit in limits)
            caps[member] = to_wait, to_hold
    return caps


def test_with_a_split_backward_late_stages_hold_as_many_as_the_first():
    plan = plan_of(range(4), [1.0] * 4, 12, stages=4)
    found = {schedule: table(plan, schedule) for schedule in (Schedule.ONE_F_ONE_B, Schedule.SPLIT)}
    assert most_at_once(plan.tasks, found[Schedule.ONE_F_ONE_B], "FIW") == [4, 3, 2, 1]
    assert most_at_once(plan.tasks, found[Schedule.SPLIT], "FI") == [4, 3, 2, 1]
    assert most_at_once(plan.tasks, found[Schedule.SPLIT], "FIW") == [4, 4, 4, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.sampled_from([1.0, 0.1, 7.0]))
def test_a_full_grid_runs_the_classic_orders(depth, replicas, micro_batches_each, cost):
    plan = plan_of(range(depth * replicas), [cost] * depth, micro_batches_each * replicas, stages=depth)
    mine = [[task.micro_batch for task in plan.tasks][replica::replicas] for replica in range(replicas)]
    gpipe = table(plan, Schedule.GPIPE, [cost] * depth)
    classic = table(plan, Schedule.ONE_F_ONE_B, [cost] * depth)
    for stage, members in enumerate(plan.stages):
        warmup = min(depth - stage - 1, micro_batches_each)
        for replica, member in enumerate(members):
            ids = [str(i) for i in mine[replica]]
            assert words(gpipe.ops[member]) == " ".join([*(f"F{i}" for i in ids), *(f"I{i}" for i in ids)])
            turns = [f"F{i}" for i in ids[:warmup]]
            for back, i in enumerate(ids):
                turns += [f"F{ids[back + warmup]}"] if back + warmup < len(ids) else []
                turns.append(f"I{i}")
            assert words(classic.ops[member]) == " ".join(turns)
    bubble = (micro_batches_each + depth - 1) * 3 * cost
    assert gpipe.finish == pytest.approx(bubble)
    assert classic.finish == pytest.approx(bubble)
    assert classic.busy == pytest.approx([3 * cost * micro_batches_each] * len(classic.busy))


def test_weights_follow_their_inputs_at_once_unless_split():
    plan = plan_of(range(3), [1.0] * 3, 4, stages=3)
    assert words(table(plan, Schedule.ONE_F_ONE_B).ops[1], "FIW") == "F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3"
    for ops in table(plan_of([0, 1, 2, 3, 5, 6], [1.0] * 9, 8, stages=3), Schedule.ONE_F_ONE_B).ops:
        found = words(ops, "IW").split()
        assert found[1::2] == [word.replace("I", "W") for word in found[::2]]


def test_weights_wait_for_idle_time_when_split():
    plan = plan_of([0, 1, 2, 3, 5, 6], [1.0] * 9, 8, stages=3)
    orders = [words(ops, "IW").split() for ops in table(plan, Schedule.SPLIT).ops]
    assert any(first[0] == second[0] == "I" for order in orders for first, second in pairwise(order))
    assert all(order.index(f"I{word[1:]}") < at for order in orders for at, word in enumerate(order) if word[0] == "W")


@pytest.mark.parametrize("ranks", [range(4), range(8), [0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 4, 5, 6]])
def test_a_split_backward_leaves_less_idle(ranks):
    plan = plan_of(ranks, [1.0] * 12, 16, stages=4)
    assert idle(table(plan, Schedule.SPLIT)) < idle(table(plan, Schedule.ONE_F_ONE_B))


def test_a_split_backward_hands_gradients_on_earlier():
    plan = plan_of(range(4), [1.0] * 4, 12, stages=4)
    assert table(plan, Schedule.ONE_F_ONE_B).finish == 3 * 12 + 3 * 3


@pytest.mark.parametrize("depth", [2, 4, 6, 8, 12])
@pytest.mark.parametrize("micro_batches", [12, 16, 24, 64])
def test_a_split_backward_on_a_full_grid_is_as_fast_as_zb_h1(depth: int, micro_batches: int):
    plan = plan_of(range(depth), [1.0] * depth, micro_batches, stages=depth)
    assert table(plan, Schedule.SPLIT).finish == 3 * micro_batches + depth - 1


def test_virtual_stages_divide_the_bubble():
    costs = [1.0] * 16
    finishes = []
    for virtual_stages in (1, 2, 4):
        plan = plan_of(range(4), costs, 8, stages=4, virtual_stages=virtual_stages)
        finishes.append(table(plan, Schedule.ONE_F_ONE_B, virtual_stages=virtual_stages).finish)
    assert finishes == [3 * 4 * 8 + 3 * 3 * 4 / virtual_stages for virtual_stages in (1, 2, 4)]


def test_only_forwards_below_the_lowest_missing_layer_and_no_weights_between():
    plan = plan_of(range(4), [1.0] * 8, 2, stages=4)
    tasks = retask(plan, {1: [2, 7]})
    found = table(plan, Schedule.SPLIT, tasks=tasks)
    assert [words(ops, "FIW") for ops in found.ops] == ["F1", "F1 I1 W1", "F1 I1", "F1 I1 W1"]
    assert found.busy == (2.0, 2 + 2 + 1, 2 + 2, 2 + 2 + 1)
    assert found.finish == 4 * 2 + 3 * 2 + 1


def test_nothing_to_do_takes_no_time():
    plan = plan_of(range(4), [1.0] * 8, 2, stages=4)
    assert table(plan, Schedule.ONE_F_ONE_B, tasks=()).finish == 0
