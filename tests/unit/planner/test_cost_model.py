"""What is learned from measurements: costs of layers, who is slow, and nothing from a single odd one."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import model_of

from elaswave.planner.cost_model import (
    KINDS,
    STEPS,
    CostModel,
    Measurement,
    Message,
    among,
    capacities,
    costs,
    layer_s,
    limits,
    observe,
    slow_members,
    speeds,
    transfer_s,
)

STAGES = ((0, 2), (1, 3))
WORKERS = ("w0", "w1", "w2", "w3")
TRUE = (1.0, 1.0, 2.0, 1.0)
"""Seconds per thousand tokens of each layer; the profile takes all for equal."""


def step(rng: random.Random, slow: dict[str, float], *, noise: float = 0.03, alone: bool = False) -> list[Measurement]:
    """Four micro-batches of unequal length through two stages of two members, or of one."""
    rows = []
    for micro_batch in range(4):
        tokens = rng.choice([256, 1024, 4096])
        for stage, (start, stop) in enumerate(((0, 2), (2, 4))):
            worker = WORKERS[stage if alone else STAGES[stage][micro_batch % 2]]
            for kind in KINDS:
                usual = sum(TRUE[start:stop]) * tokens / 1000
                seconds = usual * slow.get(worker, 1.0) * (1 + rng.uniform(-noise, noise))
                rows.append(
                    Measurement(worker_id=worker, kind=kind, start=start, stop=stop, work=tokens, seconds=seconds)
                )
    return rows


def after(steps: int, model: CostModel, rng: random.Random, slow: dict[str, float], **how: object) -> CostModel:
    for _ in range(steps):
        model = observe(model, step(rng, slow, **how))
    return model


@pytest.fixture
def fresh() -> CostModel:
    return CostModel(profile=model_of([1.0] * 4))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_unequal_lengths_raise_no_alarm(seed):
    model = after(20, CostModel(profile=model_of([1.0] * 4)), random.Random(seed), {}, noise=0.08)
    assert slow_members(model) == {}
    assert speeds(model, WORKERS) == (1.0,) * 4


@pytest.mark.parametrize("alone", [False, True])
def test_a_slow_member_is_found_within_a_few_steps_and_cleared_again(fresh: CostModel, alone: bool):
    """Also when it is alone in its stage, where only the past tells that its layers are not so costly."""
    rng = random.Random(3)
    model = after(5, fresh, rng, {}, alone=alone)
    model = after(STEPS - 1, model, rng, {"w1": 1.5}, alone=alone)
    assert slow_members(model) == {}
    model = after(1, model, rng, {"w1": 1.5}, alone=alone)
    assert slow_members(model) == pytest.approx({"w1": 1.5}, rel=0.1)
    model = after(100, model, rng, {"w1": 1.5}, alone=alone)
    assert slow_members(model) == pytest.approx({"w1": 1.5}, rel=0.1), "it is not taken for ordinary after a while"
    model = after(STEPS - 1, model, rng, {}, alone=alone)
    assert "w1" in slow_members(model)
    model = after(1, model, rng, {}, alone=alone)
    assert slow_members(model) == {}


def test_one_odd_step_is_none(fresh: CostModel):
    rng = random.Random(4)
    model = after(3, fresh, rng, {})
    for _ in range(6):
        model = after(1, model, rng, {"w2": 4.0})
        model = after(1, model, rng, {})
        assert slow_members(model) == {}


def test_between_the_two_thresholds_nothing_changes(fresh: CostModel):
    rng = random.Random(5)
    model = after(10, after(3, fresh, rng, {}), rng, {"w1": 1.15}, noise=0.0)
    assert slow_members(model) == {}
    model = after(10, after(4, model, rng, {"w1": 1.6}), rng, {"w1": 1.15}, noise=0.0)
    assert "w1" in slow_members(model)


def test_when_all_are_slow_nobody_is(fresh: CostModel):
    rng = random.Random(6)
    model = after(8, after(3, fresh, rng, {}), rng, dict.fromkeys(WORKERS, 2.0))
    assert slow_members(model) == {}


def test_layers_cost_what_was_measured_whoever_is_slow(fresh: CostModel):
    assert costs(fresh) == (1.0,) * 4
    rng = random.Random(7)
    model = after(20, after(3, fresh, rng, {}), rng, {"w0": 3.0})
    first, *_, last = costs(model)
    assert last / first == pytest.approx(1.5, rel=0.05), "of layers that are always measured together, the mean"
    assert layer_s(model, "F", 0) == pytest.approx(1e-3, rel=0.05)
    assert layer_s(fresh, "F", 0) is None


def test_a_slow_member_is_a_lower_capacity(fresh: CostModel):
    rng = random.Random(8)
    assert capacities(fresh, WORKERS, STAGES) == (2, 2)
    model = after(6, after(3, fresh, rng, {}), rng, {"w3": 2.0})
    assert capacities(model, WORKERS, STAGES) == pytest.approx((2, 1.5), rel=0.03)
    assert speeds(model, WORKERS)[3] == pytest.approx(0.5, rel=0.05)


def test_equal_measurements_make_equal_models(fresh: CostModel):
    assert after(5, fresh, random.Random(9), {"w1": 2.0}) == after(5, fresh, random.Random(9), {"w1": 2.0})
    assert observe(fresh, []) == fresh


def test_links_have_a_latency_and_a_bandwidth(fresh: CostModel):
    messages = [Message(source="a", destination="b", size_bytes=100, seconds=s) for s in (1e-3, 1e-3, 5.0)]
    messages += [Message(source="a", destination="b", size_bytes=10**6, seconds=s) for s in (2e-3, 2e-3, 9.0)]
    model = observe(fresh, [], messages)
    assert transfer_s(model, "a", "b", 0) == pytest.approx(1e-3)
    assert transfer_s(model, "a", "b", 3 * 10**6) == pytest.approx(4e-3)
    assert transfer_s(model, "b", "a", 1) is None
    assert transfer_s(observe(fresh, [], messages[:1]), "a", "b", 10**9) == 1e-3


def test_a_stage_holds_what_its_smallest_member_can():
    model = CostModel(profile=model_of([1.0] * 4), memory_bytes=(10.0,) * 4, limits_bytes={"w0": 30.0, "w2": 20.0})
    assert limits(model, WORKERS, STAGES) == (20.0, float("inf"))
    assert limits(CostModel(profile=model_of([1.0])), WORKERS, STAGES) is None


def test_who_has_left_is_forgotten(fresh: CostModel):
    message = Message(source="w0", destination="w1", size_bytes=1, seconds=1.0)
    known = observe(after(6, after(3, fresh, random.Random(1), {}), random.Random(2), {"w1": 2.0}), [], [message])
    assert set(slow_members(known)) == {"w1"}
    left = among(known, ["w0", "w2", "w3"])
    assert slow_members(left) == {}
    assert left.links == {}
    assert left.paces == known.paces
    assert among(known, WORKERS) == known


def test_who_is_slow_from_the_first_step_is_found_too(fresh: CostModel):
    model = after(STEPS, fresh, random.Random(10), {"w2": 1.6})
    assert slow_members(model) == pytest.approx({"w2": 1.6}, rel=0.1)


def test_what_means_nothing_is_left_out_or_refused(fresh: CostModel):
    nothing = Measurement(worker_id="w0", kind="F", start=0, stop=1, work=0, seconds=1.0)
    assert observe(fresh, [nothing]) == fresh
    wrong = Measurement(worker_id="w0", kind="F", start=3, stop=5, work=1, seconds=1.0)
    with pytest.raises(ValueError, match=r"layers \[3, 5\) are not of a model of 4"):
        observe(fresh, [wrong])
