"""MTTR is a sum of spans, from the fault to the slowest survivor's next committed step."""

import pytest
from support.events import DETECT_GAP_S, PHASES_S, STEP_S, Kill, MadeUpRun

from elaswave.report.history import history_build
from elaswave.report.mttr import changes, recoveries


def only(run, **kwargs):
    (one,) = recoveries(history_build(run.events, **kwargs))
    return one


def test_a_healthy_run_has_no_recovery():
    history = history_build(MadeUpRun().events)
    assert recoveries(history) == ()
    assert changes(history) == ()


def test_phases_of_the_slowest_survivor_add_up_to_mttr():
    one = only(MadeUpRun(kills=[Kill(rank=2, step=8)]))
    assert one.lost_ranks == (2,)
    assert (one.epoch, one.step, one.slowest_rank, one.fault_time_source) == (2, 7, 3, "fault")
    assert one.mttr_s == pytest.approx(sum(one.phases_s.values()) + one.redo_s)
    assert list(one.phases_s) == list(PHASES_S)
    assert one.phases_s["detect"] == pytest.approx(DETECT_GAP_S + PHASES_S["detect"], abs=1e-6)
    assert one.phases_s["restore"] == pytest.approx(PHASES_S["restore"] + 0.010, abs=1e-6)
    assert one.redo_s == pytest.approx(STEP_S + 0.003, abs=1e-6)
    assert one.stall_s == pytest.approx(one.mttr_s - STEP_S)
    assert (one.recomputed, one.bytes_moved) == (3, 3000)
    assert one.cause == "kill"
    assert one.plan == "micro-batches shared by the rest"


def test_without_a_fault_event_the_first_evidence_of_death_counts():
    told = only(MadeUpRun(kills=[Kill(rank=2, step=8)]))
    one = only(MadeUpRun(kills=[Kill(rank=2, step=8, fault_event=False)]))
    assert one.fault_time_source == "death"
    assert one.cause == "robust mutex"
    assert one.mttr_s == pytest.approx(told.mttr_s - 0.004, abs=1e-6)


def test_without_any_sign_the_survivors_first_phase_counts():
    one = only(MadeUpRun(kills=[Kill(rank=2, step=8, fault_event=False, death_event=False)]))
    assert one.fault_time_source == "phase"
    assert one.phases_s["detect"] == pytest.approx(PHASES_S["detect"], abs=1e-6)


def test_without_spans_the_phases_that_were_told_are_used():
    run = MadeUpRun(kills=[Kill(rank=2, step=8)])
    run.events = [event for event in run.events if event["kind"] != "span"]
    one = only(run)
    assert one.phases_s["agree"] == PHASES_S["agree"]
    assert one.mttr_s == pytest.approx(sum(one.phases_s.values()) + one.redo_s)


def test_a_fault_of_another_worker_or_an_earlier_holder_is_not_taken():
    run = MadeUpRun(kills=[Kill(rank=2, step=5, replaced_at=7), Kill(rank=2, step=12, fault_event=False)])
    first, second = recoveries(history_build(run.events))
    assert (first.fault_time_source, second.fault_time_source) == ("fault", "death")
    assert second.fault_t > first.committed_t


def test_a_join_is_a_change_and_no_recovery():
    run = MadeUpRun(kills=[Kill(rank=1, step=5, replaced_at=9)])
    history = history_build(run.events)
    (change,) = changes(history)
    assert len(recoveries(history)) == 1
    assert (change.epoch, change.members, change.cause) == (3, 4, "rank 1 joined")
    assert change.stall_s == pytest.approx(0.010, abs=1e-6)


def test_a_recovery_that_never_led_to_a_commit_has_no_mttr():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=8)])
    run.events = [event for event in run.events if not (event["kind"] == "step_committed" and event["step"] == 8)]
    one = only(run)
    assert one.mttr_s is None
    assert one.stall_s is None
    assert one.phases_s["restore"] > 0


def test_a_survivor_that_dies_in_the_recovery_is_not_waited_for():
    run = MadeUpRun(kills=[Kill(rank=2, step=8), Kill(rank=3, step=8)])
    first, second = recoveries(history_build(run.events))
    assert (first.epoch, first.superseded_by) == (2, 3)
    assert (second.lost_ranks, second.superseded_by) == ((3,), None)
    assert first.committed_t == second.committed_t
    assert first.mttr_s == pytest.approx(sum(first.phases_s.values()) + first.redo_s)


def test_losses_of_a_view_that_led_nowhere_are_told_by_the_next():
    run = MadeUpRun(kills=[Kill(rank=2, step=8), Kill(rank=3, step=8)])
    run.events = [e for e in run.events if not (e["kind"] == "recovery" and e["epoch"] == 2)]
    one = only(run)
    assert one.lost_ranks == (2, 3)
    assert one.fault_t == min(e["t"] for e in run.events if e["kind"] == "fault")
