"""The ledger: every micro-batch of every step exactly once."""

import pytest
from support.events import CONFIG, Kill, MadeUpRun

from elaswave.report.history import history_build
from elaswave.report.steps import ledger, median_rate_by_epoch, rate_around, rates

BATCHES = 8  # per step in CONFIG, of two samples


def accounts(run, drop=None):
    return ledger(history_build([event for event in run.events if not (drop and drop(event))], CONFIG))


def commit_of(rank, step):
    return lambda e: e["kind"] == "step_committed" and (e["rank"], e["step"]) == (rank, step)


def test_a_run_with_faults_loses_nothing_and_trains_nothing_twice():
    found = accounts(MadeUpRun(kills=[Kill(rank=2, step=8, replaced_at=12), Kill(rank=0, step=15)]))
    assert len(found.steps) == 20
    assert (found.samples, found.samples_lost, found.duplicate_samples) == (320, 0, 0)
    assert found.gaps == found.disagreements == ()
    assert found.unconfirmed_samples == 0


def test_a_micro_batch_that_two_ranks_trained():
    run = MadeUpRun(steps=5)
    next(e for e in run.events if commit_of(1, 3)(e))["micro_batches"].append(0)
    found = accounts(run)
    assert found.steps[2].duplicates == (0,)
    assert found.duplicate_samples == 2


def test_a_micro_batch_that_the_step_does_not_have():
    run = MadeUpRun(steps=5)
    next(e for e in run.events if commit_of(1, 3)(e))["micro_batches"].append(99)
    assert accounts(run).steps[2].duplicates == (99,)


def test_a_micro_batch_that_nobody_trained():
    run = MadeUpRun(steps=5)
    next(e for e in run.events if commit_of(1, 3)(e))["micro_batches"].remove(1)
    found = accounts(run)
    assert found.steps[2].missing == (1,)
    assert (found.samples_lost, found.samples) == (2, 78)


def test_a_whole_step_that_nobody_committed():
    found = accounts(MadeUpRun(steps=5), drop=lambda e: e["kind"] == "step_committed" and e["step"] == 3)
    assert found.gaps == (3,)
    assert found.samples_lost == 16


def test_a_member_that_died_before_its_report_leaves_its_share_unconfirmed():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=6)])
    found = accounts(run, drop=commit_of(2, 5))
    assert found.steps[4].unconfirmed == (2, 6)
    assert (found.samples_lost, found.unconfirmed_samples, found.samples) == (0, 4, 128)


def test_the_vote_vouches_for_a_member_that_died_before_its_report():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=6)])
    for event in run.events:
        if event["kind"] == "step_committed":
            event["counted"] = BATCHES
    found = accounts(run, drop=commit_of(2, 5))
    assert (found.samples_lost, found.unconfirmed_samples, found.samples) == (0, 0, 128)


def test_a_step_finished_over_two_views_counts_once():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=6)])
    for event in run.events:  # rank 3 was interrupted in the commit, and carried the step forward in the next view
        if commit_of(3, 5)(event) or (event["kind"] == "recovery" and event["rank"] == 3 and event["lost"]):
            event["epoch"] = 2
    found = accounts(run)
    assert (found.samples_lost, found.duplicate_samples) == (0, 0)
    assert found.steps[4].attempts == 2


def test_a_step_that_all_survivors_carried_forward_leaves_the_dead_unconfirmed():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=6)])
    for event in run.events:
        if event["kind"] == "step_committed" and event["step"] == 5:
            event["epoch"] = 2
    found = accounts(run, drop=commit_of(2, 5))
    assert found.steps[4].unconfirmed == (2, 6)


def test_a_replay_replaces_the_attempt_that_was_rolled_back():
    run = MadeUpRun(steps=8, kills=[Kill(rank=2, step=6)])
    run.events.append({**next(e for e in run.events if commit_of(0, 5)(e)), "step": 6, "loss": 9.9, "epoch": 1})
    found = accounts(run)
    assert (found.steps[5].duplicates, found.steps[5].missing) == ((), ())
    assert found.steps[5].loss != 9.9
    assert found.steps[5].agreed


@pytest.mark.parametrize(("key", "value"), [("loss", 1.0), ("digest", "0" * 16)])
def test_ranks_that_disagree_are_named(key, value):
    run = MadeUpRun(steps=5)
    next(e for e in run.events if commit_of(1, 3)(e))[key] = value
    assert accounts(run).disagreements == (3,)


def test_without_a_config_micro_batches_are_counted_as_they_come():
    run = MadeUpRun(steps=5)
    found = ledger(history_build([event for event in run.events if event["kind"] != "run"]))
    assert (found.samples, found.samples_lost) == (40, 0)


def test_rates_and_what_a_change_does_to_them():
    run = MadeUpRun(workers=1, steps=10)
    measured = rates(accounts(run).steps)
    assert len(measured) == 9
    assert measured[0].tokens_per_s == pytest.approx(20480)
    hurt = rates(accounts(MadeUpRun(kills=[Kill(rank=2, step=8)])).steps)
    before, after = rate_around(hurt, 2)
    assert before == pytest.approx(20480)
    assert after == pytest.approx(20480)
    assert hurt[6].tokens_per_s < 10000
    assert median_rate_by_epoch(hurt)[2] == pytest.approx(20480)
    assert rate_around(hurt, 9) == (pytest.approx(20480), None)
    assert rates(()) == ()
