"""Two runs, compared bit by bit."""

import copy

import pytest
from support.events import CONFIG, Kill, MadeUpRun

from elaswave.report.compare import Verdict, compare
from elaswave.report.history import history_build


def history(config=CONFIG, change=None, **kwargs):
    events = copy.deepcopy(MadeUpRun(**kwargs).events)
    for event in events:
        if change:
            change(event)
    return history_build(events, config)


def test_a_wounded_run_equals_the_healthy_one():
    found = compare(history(kills=[Kill(rank=1, step=5)]), history(workers=2))
    assert (found.verdict, found.equal_steps, found.common_steps) == (Verdict.EQUAL, 20, 20)
    assert found.first_mismatch_step is None
    assert "parameters" in found.reason


def nudge(event):
    if event["kind"] == "step_committed" and event["step"] == 7:
        event["loss"] = event["loss"] * (1 + 2**-52)


def test_one_bit_of_one_loss_is_found():
    found = compare(history(), history(change=nudge))
    assert (found.verdict, found.first_mismatch_step, found.equal_steps) == (Verdict.DIFFERENT, 7, 19)
    (difference,) = found.differences
    assert difference.what == "loss"
    assert difference.a != difference.b


def test_a_digest_that_differs():
    found = compare(history(), history(seed=1))
    assert (found.verdict, found.first_mismatch_step, found.equal_steps) == (Verdict.DIFFERENT, 1, 0)
    assert [difference.what for difference in found.differences] == ["digest"]


@pytest.mark.parametrize(("a", "b", "equal"), [(float("nan"), float("nan"), True), (0.0, -0.0, False)])
def test_losses_are_compared_by_their_bits(a, b, equal):
    def put(value):
        return lambda event: event.update(loss=value) if event["kind"] == "step_committed" else None

    found = compare(history(change=put(a)), history(change=put(b)))
    assert (found.verdict is Verdict.EQUAL) == equal


def test_digests_that_were_not_told_are_not_compared():
    def hide(event):
        event.pop("digest", None)

    found = compare(history(), history(change=hide))
    assert found.verdict is Verdict.EQUAL
    assert found.digests_compared == 0
    assert "parameters" not in found.reason


def test_settings_that_matter_make_runs_incomparable():
    other = {**CONFIG, "training": {**CONFIG["training"], "seed": 8}, "elasticity": {"min_workers": 2}}
    found = compare(history(), history(config=other))
    assert found.verdict is Verdict.INCOMPARABLE
    assert [(d.what, d.a, d.b) for d in found.differences] == [("training.seed", "7", "8")]


def test_settings_of_membership_and_snapshots_may_differ():
    other = {**CONFIG, "elasticity": {"min_workers": 3}, "snapshot": {"copies": 1}, "run": {"name": "other"}}
    assert compare(history(), history(config=other)).verdict is Verdict.EQUAL


def test_a_run_that_ended_early_is_not_equal():
    found = compare(history(), history(steps=12))
    assert (found.verdict, found.equal_steps, found.last_steps) == (Verdict.DIFFERENT, 12, (20, 12))


def test_runs_without_a_common_step():
    assert compare(history(), history_build([])).verdict is Verdict.INCOMPARABLE


@pytest.mark.parametrize(("resume", "verdict"), [("somewhere", Verdict.EQUAL), ("", Verdict.DIFFERENT)])
def test_a_run_that_goes_on_from_a_checkpoint_is_compared_from_there(resume: str, verdict: Verdict):
    config = {**CONFIG, "checkpoint": {"resume": resume}}
    events = [e for e in MadeUpRun().events if e["kind"] != "step_committed" or e["step"] > 12]
    found = compare(history(), history_build(events, config))
    assert (found.verdict, found.equal_steps) == (verdict, 8)
    assert ("begins at step 13" in found.reason) == bool(resume)
