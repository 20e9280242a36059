"""The page, report.json and the trace."""

import json
import re
import tomllib
from html.parser import HTMLParser

import pytest
from support.events import CONFIG, Kill, MadeUpRun

from elaswave.config import from_mapping
from elaswave.faults.scenario import Scenario
from elaswave.report.facts import Fault
from elaswave.report.history import history_build
from elaswave.report.html import page
from elaswave.report.markup import Markup, el, join, nice_ticks, thin
from elaswave.report.summary import as_json, report_build
from elaswave.report.toml import config_toml, faults_toml
from elaswave.report.trace import trace

KILLS = [Kill(rank=2, step=8, replaced_at=12), Kill(rank=0, step=15)]


@pytest.fixture(scope="module")
def wounded():
    return report_build(history_build(MadeUpRun(kills=KILLS).events, CONFIG), history_build(MadeUpRun().events, CONFIG))


class Balance(HTMLParser):
    """Checks that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(wounded):
    text = page(wounded)
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert not re.search(r"(src|href)=|url\(|@import|<script|https?://", text)
    for name in ("Wounded, and equal", "Bitwise equal", "of 20 steps", "Run it again", "prefers-color-scheme"):
        assert name in text


def test_whatever_the_run_says_is_escaped():
    bad = "<script>alert('x')</script>\"&"
    run = MadeUpRun(kills=[Kill(rank=2, step=8)])
    for event in run.events:
        for key in ("reason", "cause", "plan", "evidence", "what", "digest", "phase"):
            if key in event:
                event[key] = bad
    run.emit("error", 0, message=bad)
    run.emit("left", 0, reason=bad)
    run.events[0] |= {"name": bad, "command": bad}
    text = page(report_build(history_build(run.events, {**CONFIG, "data": {"path": bad}})))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_broken_promises_are_in_the_headline():
    run = MadeUpRun(kills=[Kill(rank=2, step=8)])
    run.events = [e for e in run.events if not (e["kind"] == "step_committed" and e["step"] in (4, 20))]
    report = report_build(history_build(run.events, CONFIG))
    assert len(report.failures) == 2
    text = page(report)
    assert "Not as promised." in text
    assert "16 samples were never trained" in text


def test_a_run_that_did_nothing_has_a_page():
    assert "no step was committed" in page(report_build(history_build([])))


def test_a_run_of_many_steps_and_ranks_stays_small():
    run = MadeUpRun(
        workers=40, steps=500, micro_batches=40, spans=False, kills=[Kill(rank=9, step=i * 9) for i in (1,)]
    )
    assert len(page(report_build(history_build(run.events)))) < 300_000


def test_report_json_has_the_keys_that_others_rely_on(wounded):
    values = json.loads(json.dumps(as_json(wounded), allow_nan=False))
    assert values["config"] == CONFIG
    assert values["samples_lost"] == 0
    assert values["ok"] is True
    steps = values["steps"]
    assert (steps["number"], steps["samples"], steps["duplicate_samples"], steps["missing_samples"]) == (20, 320, 0, 0)
    assert (values["digest"]["reference"], values["digest"]["first_mismatch_step"]) == ("equal", None)
    assert values["digest"]["final"] == steps["digests"][-1]
    assert {"rank", "worker_id", "pid", "joined_step", "left_step", "reason"} <= values["members"][0].keys()
    (first, _) = values["recoveries"]
    wanted = {"cause", "lost_ranks", "epoch", "step", "mttr_s", "stall_s", "recomputed", "bytes_moved", "plan"}
    assert wanted <= first.keys()
    assert list(first["phases_s"]) == ["detect", "agree", "plan", "relink", "restore", "migrate", "resume"]
    assert first["mttr_s"] == pytest.approx(sum(first["phases_s"].values()) + first["redo_s"])


def test_numbers_that_json_does_not_have_become_null():
    run = MadeUpRun(steps=2)
    for event in run.events:
        if "loss" in event:
            event["loss"] = float("nan")
    report = report_build(history_build(run.events))
    assert json.dumps(as_json(report), allow_nan=False)
    assert as_json(report)["steps"]["final_loss"] is None
    assert page(report)


def test_the_trace_has_a_lane_per_worker_and_marks_faults(wounded):
    events = json.loads(json.dumps(trace(wounded.history)))["traceEvents"]
    lanes = [event for event in events if event["name"] == "thread_name"]
    assert len(lanes) == 5
    assert len({(event["pid"], event["tid"]) for event in lanes}) == 5
    spans = [event for event in events if event["ph"] == "X"]
    assert {"forward", "restore"} <= {event["name"] for event in spans}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
    instants = [event["name"] for event in events if event["ph"] == "i"]
    assert "kill rank 2" in instants
    assert any(name.startswith("view 2") for name in instants)


def test_the_settings_shown_can_be_run_again():
    config = from_mapping({"data": {"source": "text", "path": 'a "b"\\c\n\x7f'}}).model_dump(mode="json")
    assert tomllib.loads(config_toml(config)) == config


def test_the_faults_shown_are_a_scenario():
    faults = [Fault(t=1.0, what="kill", rank=r, pid=1, step=8, phase=None) for r in (2, 1)]
    faults.append(Fault(t=2.0, what="stop", rank=0, pid=1, step=9, phase="backward"))
    scenario = Scenario.model_validate(tomllib.loads(faults_toml(faults)))
    assert [(f.ranks, f.step, f.phase) for f in scenario.fault] == [((1, 2), 8, None), ((0,), 9, "backward")]


def test_markup_escapes_what_it_did_not_build():
    assert el("a", "<", Markup("<b>"), title='"<') == '<a title="&quot;&lt;">&lt;<b></a>'
    assert join(["<", el("i")]) == "&lt;<i></i>"


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.13, 0.44, 3) == pytest.approx([0.2, 0.4])
    assert nice_ticks(3, 3) == [3]


def test_thinning_keeps_the_peaks():
    points = [(float(i), float(i == 777)) for i in range(10_000)]
    kept = thin(points, 100)
    assert len(kept) <= 110
    assert (777.0, 1.0) in kept
    assert kept == sorted(kept)
