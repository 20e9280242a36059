"""What each member does, with its messages: both ends agree on every one, and nobody waits for ever."""

from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import jobs, plan_of

from elaswave.communicator.group import TAG_MAX
from elaswave.config import Config, Schedule
from elaswave.pipeline.schedule import LEGS_MAX, TAG_BASE, Kind, Operation, operations
from elaswave.planner.dataflow import retask
from elaswave.planner.plan import Leg, Plan, Task
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import timetable
from elaswave.topology import View

SENDS = {Kind.SEND_ACTIVATION: Kind.RECV_ACTIVATION, Kind.SEND_GRADIENT: Kind.RECV_GRADIENT}
RECEIVES = {receive: send for send, receive in SENDS.items()}


def lists_of(
    plan: Plan, tasks: tuple[Task, ...], schedule: Schedule, costs: tuple[float, ...], virtual_stages: int = 1
) -> list[tuple[Operation, ...]]:
    """The operations of every member."""
    order = timetable(tasks, plan.stages, costs, schedule, len(plan.worker_ids), virtual_stages)
    return [operations(tasks, ops, member) for member, ops in enumerate(order.ops)]


def run(lists: list[tuple[Operation, ...]]) -> int:
    """Run all lists, waiting only for messages; returns how many operations are left when nobody can go on."""
    sent: set[tuple[int, int, int]] = set()
    position, progress = [0] * len(lists), True
    while progress:
        progress = False
        for member, mine in enumerate(lists):
            while position[member] < len(mine):
                op = mine[position[member]]
                if op.kind in RECEIVES and (op.peer, member, op.tag) not in sent:
                    break
                if op.kind in SENDS:
                    sent.add((member, op.peer, op.tag))
                position[member] += 1
                progress = True
    return sum(len(mine) - at for mine, at in zip(lists, position, strict=True))


def kept(op: Operation) -> tuple[int, int, int]:
    return op.micro_batch, op.start, op.stop


@settings(max_examples=150, deadline=None)
@given(jobs(), st.data())
def test_every_message_has_two_ends_and_a_tag_of_its_own(job: tuple[Config, View, Profile], data: st.DataObject):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    layers = st.lists(st.integers(0, profile.num_layers - 1), unique=True)
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), layers))
    for tasks in plan.tasks, retask(plan, missing, profile.costs):
        lists = lists_of(plan, tasks, parallel.schedule, profile.costs, parallel.virtual_stages)
        assert run(lists) == 0
        sent = [
            (member, op.peer, op.tag, op.kind) for member, ops in enumerate(lists) for op in ops if op.kind in SENDS
        ]
        received = [
            (op.peer, member, op.tag, RECEIVES[op.kind])
            for member, ops in enumerate(lists)
            for op in ops
            if op.kind in RECEIVES
        ]
        assert sorted(sent) == sorted(received)
        tags = [tag + extra for *_, tag, kind in sent for extra in range(1 + (kind is Kind.SEND_ACTIVATION))]
        assert len(set(tags)) == len(tags)
        assert all(TAG_BASE <= tag <= TAG_MAX for tag in tags)
        assert all(member != peer for member, peer, *_ in sent)


@settings(max_examples=150, deadline=None)
@given(jobs(), st.data())
def test_what_is_wanted_is_computed_and_what_is_kept_is_let_go(job: tuple[Config, View, Profile], data: st.DataObject):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    layers = st.lists(st.integers(0, profile.num_layers - 1), unique=True, min_size=1)
    missing = data.draw(st.dictionaries(st.integers(0, config.micro_batches - 1), layers))
    for tasks in plan.tasks, retask(plan, missing, profile.costs):
        added: list[tuple[int, int]] = []
        for ops in lists_of(plan, tasks, parallel.schedule, profile.costs, parallel.virtual_stages):
            for op in ops:
                if op.kind is Kind.FORWARD:
                    wanted = [n for low, high in op.missing for n in range(max(low, op.start), min(high, op.stop))]
                    assert op.weights == bool(wanted)
                    added += [(op.micro_batch, number) for number in wanted]
            with_weights = [kept(op) for op in ops if op.kind is Kind.BACKWARD_INPUT and op.weights]
            assert sorted(kept(op) for op in ops if op.kind is Kind.BACKWARD_WEIGHT) == sorted(with_weights)
        wanted = [(task.micro_batch, n) for task in tasks for low, high in task.missing for n in range(low, high)]
        assert sorted(added) == sorted(wanted)


def words(ops: tuple[Operation, ...]) -> str:
    """A list as text: what of which micro-batch, and with whom."""
    names = {Kind.RECV_ACTIVATION: "<a", Kind.SEND_ACTIVATION: ">a", Kind.RECV_GRADIENT: "<g", Kind.SEND_GRADIENT: ">g"}
    names |= {Kind.FORWARD: "F", Kind.BACKWARD_INPUT: "I", Kind.BACKWARD_WEIGHT: "W"}
    return " ".join(f"{names[op.kind]}{op.micro_batch}" + (f"@{op.peer}" if op.peer >= 0 else "") for op in ops)


GOLDEN = {
    Schedule.ONE_F_ONE_B: [
        "F0 >a0@1 F2 >a2@1 <g0@1 I0 W0 <g2@1 I2 W2",
        "<a0@0 F0 I0 >g0@0 W0 <a2@0 F2 I2 >g2@0 W2",
        "F1 >a1@3 F3 >a3@3 <g1@3 I1 W1 <g3@3 I3 W3",
        "<a1@2 F1 I1 >g1@2 W1 <a3@2 F3 I3 >g3@2 W3",
    ],
    Schedule.GPIPE: [
        "F0 >a0@1 F2 >a2@1 <g0@1 I0 W0 <g2@1 I2 W2",
        "<a0@0 F0 <a2@0 F2 I0 >g0@0 W0 I2 >g2@0 W2",
        "F1 >a1@3 F3 >a3@3 <g1@3 I1 W1 <g3@3 I3 W3",
        "<a1@2 F1 <a3@2 F3 I1 >g1@2 W1 I3 >g3@2 W3",
    ],
}


@pytest.mark.parametrize("schedule", GOLDEN, ids=str)
def test_two_pipelines_of_two_stages_with_four_micro_batches(schedule: Schedule):
    costs = (1.0,) * 4
    plan = plan_of(range(4), costs, 4, stages=2)
    assert [words(ops) for ops in lists_of(plan, plan.tasks, schedule, costs)] == GOLDEN[schedule]


def test_two_stages_with_four_micro_batches_and_a_split_backward():
    costs = (1.0,) * 4
    plan = plan_of(range(2), costs, 4, stages=2)
    assert [words(ops) for ops in lists_of(plan, plan.tasks, Schedule.SPLIT, costs)] == [
        "F0 >a0@1 F1 >a1@1 <g0@1 I0 W0 F2 >a2@1 <g1@1 I1 W1 F3 >a3@1 <g2@1 I2 W2 <g3@1 I3 W3",
        "<a0@0 F0 I0 >g0@0 <a1@0 F1 I1 >g1@0 W0 <a2@0 F2 I2 >g2@0 W1 <a3@0 F3 I3 >g3@0 W2 W3",
    ]


def test_only_forwards_below_all_that_is_missing_and_no_messages_back():
    costs = (1.0,) * 6
    plan = plan_of(range(3), costs, 2, stages=3)
    tasks = retask(plan, {1: [3, 5]})
    first, second, third = lists_of(plan, tasks, Schedule.ONE_F_ONE_B, costs)
    assert words(first) == "F1 >a1@1"
    assert words(second) == "<a1@0 F1 >a1@2 <g1@2 I1 W1"
    assert words(third) == "<a1@1 F1 I1 >g1@1 W1"
    assert all(op.missing == ((3, 4), (5, 6)) for op in (*second, *third) if op.peer < 0)


def test_tags_of_the_last_micro_batch_that_there_may_be_are_in_range():
    last = (TAG_MAX - TAG_BASE) // (4 * LEGS_MAX) - 1
    legs = (Leg(member=0, start=0, stop=1), Leg(member=1, start=1, stop=2))
    tasks = (Task(micro_batch=last, legs=legs, missing=((0, 2),)),)
    order = timetable(tasks, [(0,), (1,)], (1.0, 1.0), Schedule.ONE_F_ONE_B, 2)
    tags = [[op.tag for op in operations(tasks, order.ops[member], member) if op.peer >= 0] for member in range(2)]
    assert tags[0] == tags[1]
    assert all(tag + 1 <= TAG_MAX for tag in tags[0])


@settings(max_examples=50, deadline=None)
@given(jobs())
def test_nothing_is_done_at_once_while_another_member_waits(job: tuple[Config, View, Profile]):
    config, view, profile = job
    plan, parallel = make_plan(config, None, view, profile), config.parallelism
    for mine in lists_of(plan, plan.tasks, parallel.schedule, profile.costs, parallel.virtual_stages):
        for op, after in zip_longest(mine, mine[1:]):
            follows = after is not None and after.kind is Kind.BACKWARD_WEIGHT and kept(after) == kept(op)
            assert op.at_once == (op.kind is Kind.BACKWARD_INPUT and follows)
            assert not (op.at_once and op.start)
