"""Events become facts, and events that make no sense do no harm."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from support.events import CONFIG, Kill, MadeUpRun, worker_id

from elaswave.events import Kind
from elaswave.report.history import history_build
from elaswave.report.html import page
from elaswave.report.summary import as_json, report_build
from elaswave.report.trace import trace


def test_no_events_are_an_empty_history():
    history = history_build([])
    assert history.members == ()
    assert history.commits == ()


def test_lifetimes_of_workers():
    history = history_build(MadeUpRun(kills=[Kill(rank=2, step=8, replaced_at=12)]).events, CONFIG)
    first, second = (member for member in history.members if member.rank == 2)
    assert (first.lost, first.joined_step, first.left_step, first.reason) == (True, 0, 7, "robust mutex")
    assert (second.lost, second.joined_step, second.left_t) == (False, 11, None)
    assert [member.lost for member in history.members].count(True) == 1


def test_a_death_after_the_last_step_is_no_loss():
    run = MadeUpRun(steps=20)
    run.emit("death", t=run.now + 1, evidence="exit 0")
    run.events[-1] |= {"worker_id": worker_id(1), "rank": 1}
    assert not any(member.lost for member in history_build(run.events).members)


def test_a_worker_that_views_no_longer_name_was_lost_unless_it_left():
    run = MadeUpRun(kills=[Kill(rank=2, step=8, death_event=False)])
    (lost,) = (member for member in history_build(run.events).members if member.lost)
    assert (lost.rank, lost.reason) == (2, "lost rank 2")
    left = {"t": run.events[0]["t"] + 0.5, "kind": "left", "rank": 2, "worker_id": worker_id(2), "reason": "asked"}
    (gone,) = (member for member in history_build([*run.events, left]).members if member.left_t is not None)
    assert (gone.lost, gone.reason) == (False, "asked")


def test_a_view_is_taken_where_it_was_first_seen():
    history = history_build(MadeUpRun(kills=[Kill(rank=0, step=3)]).events)
    assert [view.epoch for view in history.views] == [1, 2]
    assert [len(view.members) for view in history.views] == [4, 3]


def test_broken_events_are_counted_and_left_out():
    run = MadeUpRun(steps=3)
    run.events += [
        {"kind": "step_committed"},
        {"t": 1e9, "kind": "step_committed", "rank": "x", "worker_id": "a", "step": 1},
        {"t": 1e9, "kind": "view", "epoch": 3, "members": [[1]]},
        {"t": True, "kind": "view"},
    ]
    history = history_build(run.events)
    assert history.skipped == 2
    assert len(history.views) == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(0, 10)
    | st.just(float("nan"))
    | st.sampled_from(["", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["detect", "x"]), inner, max_size=2),
    max_leaves=4,
)
fields = ["rank", "worker_id", "pid", "step", "epoch", "members", "lost", "phases_s", "micro_batches", "loss"]
fields += ["name", "t0", "t1", "target_rank", "plan", "reason", "cause", "config", "tokens", "counted", "digest"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda t, kind, values: {"t": t, "kind": str(kind), **values},
            st.floats(0, 100),
            st.sampled_from(list(Kind)),
            st.dictionaries(st.sampled_from(fields), json_values, max_size=8),
        ),
        max_size=12,
    )
)
def test_a_report_can_be_made_of_anything(events):
    report = report_build(history_build(events))
    as_json(report)
    trace(report.history)
    assert page(report).startswith("<!doctype html>")


WOUNDED = MadeUpRun(workers=3, steps=6, kills=[Kill(rank=1, step=2, replaced_at=4), Kill(rank=2, step=5)], spans=False)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_a_report_can_be_made_of_what_is_left_of_a_run(seed, kept, config):
    draw = random.Random(seed).random
    events = [event for event in WOUNDED.events if draw() < kept]
    report = report_build(history_build(events, CONFIG if config else None), history_build(WOUNDED.events, CONFIG))
    as_json(report)
    assert page(report).startswith("<!doctype html>")
    for one in report.recoveries:
        assert one.mttr_s is None or abs(one.mttr_s - sum(one.phases_s.values()) - (one.redo_s or 0.0)) < 1e-6
