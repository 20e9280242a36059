"""Progress as a person sees it: plain lines, or a live display on a terminal."""

import io
import os
import re
from collections.abc import Iterator

import pytest
from support.events import Kill, MadeUpRun, write_run

from elaswave.telemetry.console import Console
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.plain import PlainProgress
from elaswave.telemetry.progress import Progress, Tone
from elaswave.telemetry.runs import read_config, write_config

KILLS = [Kill(rank=2, step=8, replaced_at=12)]


class Feed:
    """A follower that hands out events in pieces."""

    def __init__(self, events, piece=25):
        self.pieces = [events[i : i + piece] for i in range(0, len(events), piece)]

    def poll(self):
        return self.pieces.pop(0) if self.pieces else []


def in_order(run):
    return sorted(run.events, key=lambda event: event["t"])


def test_plain_lines_are_few_and_tell_what_matters():
    out = io.StringIO()
    console = Console(Feed(in_order(MadeUpRun(steps=40, kills=KILLS))), out, total_steps=40)
    console.finish()
    lines = out.getvalue().splitlines()
    progress = [line for line in lines if re.search(r"\] step \d+/40  loss \d", line)]
    assert 4 <= len(progress) <= 8
    assert "step 40/40" in progress[-1]
    assert "4 workers  view 3" in progress[-1]
    assert sum("fault: kill rank 2 (pid 1002) at step 8" in line for line in lines) == 1
    assert sum("rank 2 died: robust mutex" in line for line in lines) == 1
    assert sum("view 2: 3 workers; lost rank 2" in line for line in lines) == 1
    assert sum("rank 2 joined after step 11" in line for line in lines) == 1
    assert sum("] back in 213 ms after the loss of rank 2 (kill)" in line for line in lines) == 1
    table = lines[lines.index(next(line for line in lines if line.startswith("view  lost"))) :]
    assert table[2].split()[-1] == "213"
    assert console.last_recovery is not None


def test_ticks_return_the_new_events():
    events = in_order(MadeUpRun(steps=3))
    console = Console(Feed(events, piece=10), io.StringIO())
    assert console.tick() == events[:10]
    assert console.progress.epoch == 1


def test_the_last_table_is_made_of_all_events_of_the_folder(tmp_path):
    write_run(tmp_path / "run", MadeUpRun(kills=KILLS).events)
    out = io.StringIO()
    Console(Follower(tmp_path / "run"), out, 20).finish()
    assert "rank 2  kill" in out.getvalue()
    assert "step 20/20" in out.getvalue()


def test_a_quiet_run_says_so():
    out = io.StringIO()
    Console(Feed(in_order(MadeUpRun(steps=3))), out, 3).finish()
    assert "no worker was lost" in out.getvalue()


def test_a_recovery_without_an_end_is_not_waited_for_forever():
    run = MadeUpRun(steps=20, kills=KILLS)
    events = [e for e in in_order(run) if not (e["kind"] == "step_committed" and e["step"] > 7 and e["rank"] == 3)]
    console = Console(Feed(events), io.StringIO(), 20)
    console.finish()
    assert console._open == set()


@pytest.fixture
def terminal() -> Iterator[tuple[io.TextIOWrapper, int]]:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", buffering=1) as out:
        yield out, ours
    os.close(ours)


def test_a_terminal_gets_a_live_display_and_is_given_back(terminal, monkeypatch):
    out, screen = terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    console = Console(Feed(in_order(MadeUpRun(steps=12, kills=KILLS)), piece=60), out, 12)
    shown = b""
    try:
        for _ in range(4):
            console.tick()
            shown += os.read(screen, 1 << 16)
        console.close()
        console.finish()
        shown += os.read(screen, 1 << 16)
    finally:
        console.close()
    text = shown.decode()
    assert "\x1b[?25l" in text  # cursor hidden
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and shown again
    assert "12/12" in text


def test_a_worker_with_the_lowest_rank_speaks_for_all():
    run = MadeUpRun(steps=30, kills=[Kill(rank=0, step=11)])
    spoken = {}
    for rank in (0, 1, 2):
        out = io.StringIO()
        sink = PlainProgress(30, out)
        for event in in_order(run):
            if event.get("rank") == rank and event["kind"] not in ("fault", "death"):
                sink.emit(event)
        sink.close()
        spoken[rank] = out.getvalue()
    assert "step 1/30" in spoken[0]
    assert "recovered from the loss of rank 0 in 50 ms: detect 10" in spoken[1]
    assert "step 30/30" in spoken[1]
    assert spoken[2] == ""


def test_a_worker_speaks_when_it_is_asked_to():
    out, turns = io.StringIO(), iter([False, True])
    sink = PlainProgress(2, out, speaks=lambda: next(turns))
    for step in (1, 2):
        sink.emit({"t": 3.0 * step, "kind": "step_committed", "rank": 5, "step": step, "epoch": 4, "loss": 1.0})
    assert out.getvalue() == "[   3.00 s] step 2/2  loss 1.0000  view 4\n"


def test_a_closed_stream_does_not_end_the_training():
    out = io.StringIO()
    out.close()
    sink = PlainProgress(2, out)
    for event in MadeUpRun(steps=2).events:
        sink.emit(event)


def test_events_that_make_no_sense_are_passed_over():
    progress = Progress()
    for event in ({}, {"t": "x", "kind": "view"}, {"t": 1.0, "kind": "view", "epoch": 1, "members": [[]]}, {"t": 1}):
        assert progress.observe(event) is None
    assert progress.observe({"t": 1.0, "kind": "run", "config": None}) is not None


def test_members_that_go_after_the_last_step_are_no_news():
    out, run = io.StringIO(), MadeUpRun(steps=3)
    run.emit("view", epoch=2, members=[], reason="finished rank 0", paused=False)
    Console(Feed(in_order(run)), out, 3).finish()
    assert "view 2" not in out.getvalue()
    assert "4 workers  view 1" in out.getvalue()


def test_a_paused_view_is_shown_as_such():
    line = Progress().observe(
        {"t": 1.0, "kind": "view", "epoch": 2, "members": [], "paused": True, "reason": "one left"}
    )
    assert line is not None
    assert (line.text, line.tone) == ("view 2: 0 workers, paused; one left", Tone.BAD)


def test_settings_of_a_run_are_written_and_read(tmp_path):
    write_config(tmp_path / "run", {"training": {"steps": 3}})
    assert read_config(tmp_path / "run") == {"training": {"steps": 3}}
    assert read_config(tmp_path) == {}
