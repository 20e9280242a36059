"""What is to be computed in an attempt, and by whom."""

from support.planning import config_of, plan_of

from elaswave.pipeline.schedule import Kind
from elaswave.pipeline.spent import Spent
from elaswave.planner.dataflow import retask
from elaswave.runtime.work import Work

COSTS = (1.0,) * 4
PARALLEL = config_of(4, stages=2).parallelism
PLAN = plan_of(range(4), COSTS, 4, stages=2)


def test_a_member_has_the_micro_batches_of_which_it_computes_some_part():
    work = Work(PLAN, PLAN.tasks)
    assert [work.of(member) for member in range(4)] == [(0, 2), (0, 2), (1, 3), (1, 3)]
    rest = Work(PLAN, retask(PLAN, {3: [2]}))
    assert [rest.of(member) for member in range(4)] == [(3,), (3,), (), ()]


def test_the_operations_are_those_of_the_tasks():
    work = Work(PLAN, PLAN.tasks)
    for member in range(4):
        ops = work.operations(member, PARALLEL, COSTS)
        forwards = sorted(op.micro_batch for op in ops if op.kind is Kind.FORWARD)
        assert tuple(forwards) == work.of(member)
    assert Work(PLAN, ()).operations(0, PARALLEL, COSTS) == ()


def test_work_is_the_same_as_long_as_plan_and_tasks_are():
    work = Work(PLAN, PLAN.tasks)
    assert work.same(PLAN, PLAN.tasks)
    assert not work.same(PLAN, retask(PLAN, {3: [2]}))
    assert not work.same(plan_of(range(4), COSTS, 4, stages=2), PLAN.tasks)
    assert not Work().same(PLAN, PLAN.tasks)


def test_all_that_lost_members_were_to_compute_counts_as_begun():
    work = Work(PLAN, PLAN.tasks)
    assert work.of_lost(["w0", "w1", "w2", "w3", "new"]) == Spent()
    lost = work.of_lost(["w0", "w1", "w3"])
    assert {micro_batch for passes in lost.passes for micro_batch in passes} == set(work.of(2))


def test_before_the_first_plan_nothing_is_begun():
    assert Work().of_lost(["w0"]) == Spent()
