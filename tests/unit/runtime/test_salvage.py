"""What a fault leaves of a step: each contribution is kept once or computed again, wherever it was."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_group import FakeNetwork
from support.planning import config_of, jobs, model_of, view_of
from support.stages import Sums, layers_of, units_of

from elaswave.errors import CorruptState
from elaswave.numerics import ExactAccumulator
from elaswave.pipeline.buckets import Buckets
from elaswave.pipeline.gradients import Gradients, spans_of
from elaswave.pipeline.spent import everything
from elaswave.planner.plan import Plan
from elaswave.planner.scheduler import make_plan
from elaswave.runtime import salvage
from elaswave.runtime.salvage import Salvage
from elaswave.runtime.survey import Done, Survey
from elaswave.zero.layout import cut

VERSION = 2
LAYERS = 4
COSTS = (1.0, 2.0, 1.0, 4.0)


def done(layers: Mapping[int, Sequence[int]], step: int = VERSION, begun: Sequence[int] = ()) -> Done:
    """What a member tells: by micro-batch the layers in its sums."""
    spans = {m: spans_of(numbers) for m, numbers in layers.items()}
    return Done(step=step, spans=spans, spent=everything(begun, LAYERS))


def plan_from(
    members: Sequence[Done], me: int = 0, plan: Plan | None = None, costs: Sequence[float] = COSTS
) -> Salvage:
    """What is left to do, seen from one member."""
    plan = plan or plan_for(len(members))
    job: Any = SimpleNamespace(
        plan=plan,
        agent=SimpleNamespace(worker_id=plan.worker_ids[me]),
        trainee=SimpleNamespace(stage=SimpleNamespace(layers=SimpleNamespace(num_layers=len(costs)))),
        costs=costs,
    )
    survey = Survey(offers={}, layouts={}, totals={}, scalars={}, done=tuple(members))
    return salvage.plan(job, survey, VERSION, spoiled=False)


def plan_for(members: int, stages: int = 1, micro_batches: int = 4) -> Plan:
    return make_plan(config_of(micro_batches, stages=stages), None, view_of(range(members)), model_of(COSTS))


def wanted(left: Salvage) -> dict[int, list[int]]:
    return {task.micro_batch: [n for a, b in task.missing for n in range(a, b)] for task in left.tasks}


@settings(max_examples=100, deadline=None)
@given(jobs(), st.data())
def test_what_nobody_has_is_computed_and_nothing_else(job, data: st.DataObject):
    config, view, profile = job
    plan, size = make_plan(config, None, view, profile), len(view.members)
    owners = {
        (m, n): data.draw(st.integers(-1, size - 1))
        for m in range(config.micro_batches)
        for n in range(profile.num_layers)
    }
    older = data.draw(st.sets(st.integers(0, size - 1)))
    members = []
    for member in range(size):
        layers: dict[int, list[int]] = {}
        for (m, n), owner in owners.items():
            if owner == member:
                layers.setdefault(m, []).append(n)
        members.append(done(layers, VERSION + 1 if member in older else VERSION))
    kept = {key for key, owner in owners.items() if owner >= 0 and owner not in older}
    results = [plan_from(members, me, plan, profile.costs) for me in range(size)]
    rest = {(m, n) for m, layers in wanted(results[0]).items() for n in layers}
    assert rest == owners.keys() - kept
    assert all(left.tasks == results[0].tasks for left in results), "all members come to the same"
    for me, left in enumerate(results):
        assert left.forget == all(owner != me for key, owner in owners.items() if key in kept)


def test_when_nobody_keeps_anything_the_step_is_the_planned_one():
    plan = plan_for(2)
    left = plan_from([done({}), done({})], plan=plan)
    assert left.tasks is plan.tasks
    assert left.forget
    assert (left.recomputed, left.recomputed_share) == (0, 0.0)


def test_when_everything_is_there_nothing_is_left():
    whole = range(LAYERS)
    left = plan_from([done({0: whole, 1: whole, 2: [0]}), done({2: [1, 2, 3], 3: whole})])
    assert left.tasks == ()
    assert not left.forget


@pytest.mark.parametrize("member", [0, 1])
def test_a_contribution_that_two_members_have_is_refused(member: int):
    members = [done({1: [0, 1]}), done({1: [1, 2]})]
    with pytest.raises(CorruptState, match=r"layers \[1\] of 1 are held twice"):
        plan_from(members, member)


def test_what_belongs_to_another_step_does_not_count_twice():
    left = plan_from([done({1: range(LAYERS)}), done({1: range(LAYERS)}, VERSION + 1)])
    assert sorted(wanted(left)) == [0, 2, 3]


@pytest.mark.parametrize(
    "mine", [done({0: [1]}, VERSION + 1), done({0: [1]}, VERSION - 1), done({}), done({0: []}), done({}, VERSION + 1)]
)
def test_sums_in_which_nothing_counts_are_forgotten_even_when_others_keep_theirs(mine: Done):
    left = plan_from([mine, done({2: range(LAYERS)})])
    assert left.forget
    assert sorted(wanted(left)) == [0, 1, 3]
    assert not plan_from([mine, done({2: range(LAYERS)})], 1).forget


def test_only_what_had_been_begun_is_computed_a_second_time():
    members = [done({0: range(LAYERS)}, begun=[0, 1]), done({}, begun=[1, 2])]
    left = [plan_from(members, me) for me in range(2)]
    assert sorted(wanted(left[0])) == [1, 2, 3]
    assert sum(one.recomputed for one in left) == 2
    assert [one.recomputed_share for one in left] == [0.5, 0.5]


def test_work_done_again_is_weighed_by_what_it_takes():
    """Of one of four micro-batches the last layer: a whole forward, and both halves of half of the backward."""
    members = [done({m: range(LAYERS) for m in (0, 2, 3)}), done({1: [0, 1, 2]}, begun=[1])]
    assert plan_from(members).recomputed_share == pytest.approx((8 + 4 + 4) / (3 * 8 * 4))


# -- sums of layers that moved ---------------------------------------------------------------------------------


def test_sums_set_aside_are_added_up_at_the_new_owners():
    layers = layers_of()
    sizes, bounds, everything = layers.table.unit_sizes(), layers.table.unit_bounds, units_of(layers, range(5))
    network = FakeNetwork(["w0", "w1", "w2"])
    layout = cut(sizes, 3, chunk=4, buckets=[(everything[:3], (0, 1)), (everything[3:], (1, 2))])
    has = {"w0": [0, 3], "w1": [3, 5], "w2": []}
    expected: Sums = {unit: torch.zeros(size, dtype=torch.int64) for unit, size in enumerate(sizes)}
    arriving = []
    for index, (worker_id, units) in enumerate(has.items()):
        gradients = Gradients(Buckets(layers.table, ()), ExactAccumulator)
        for unit in units:
            part = torch.arange(sizes[unit]) * (index + 2) + unit
            gradients.aside[unit] = part
            expected[unit] += part
        job: Any = SimpleNamespace(
            plan=SimpleNamespace(worker_ids=network.members),
            agent=SimpleNamespace(worker_id=worker_id),
            trainee=SimpleNamespace(stage=SimpleNamespace(gradients=gradients, layers=layers)),
            world=lambda index=index: network.groups[index],
        )
        held: Any = SimpleNamespace(layout=layout, index=index)
        arriving.append(salvage.bring_together(job, held, has, 9))
    for index, (remap, extra) in enumerate(arriving):
        assert remap is not None
        assert extra is not None
        remap.finish()
        flat = torch.cat([expected[unit] for unit in range(len(sizes))])
        assert flat.numel() == bounds[-1][1]
        assert torch.equal(extra, torch.cat([flat[a:b] for a, b in layout.ranges(index)]))


def test_nothing_travels_when_nobody_has_set_anything_aside():
    job: Any = SimpleNamespace(plan=object())
    assert salvage.bring_together(job, None, {"w0": [], "w1": []}, 9) == (None, None)  # type: ignore[arg-type]
