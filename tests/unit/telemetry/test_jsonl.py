"""The event file: one line per event, whatever happens to the process or the disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elaswave.events import Kind, Recorder
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.jsonl import JsonlSink


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_worker_writes_its_own_file(tmp_path):
    sink = JsonlSink(tmp_path / "run", worker_id="abc")
    Recorder((sink,), {"rank": 3, "worker_id": "abc", "pid": 1}).emit(Kind.JOINED, epoch=1, step=0)
    sink.close()
    (event,) = lines(tmp_path / "run" / "events" / "rank-3-abc.jsonl")
    assert event["kind"] == "joined"
    assert event["rank"] == 3


def test_a_node_writes_its_own_file(tmp_path):
    sink = JsonlSink(tmp_path, node_id="n1")
    sink.emit({"t": 1.0, "kind": "death", "rank": 2, "worker_id": "abc"})
    sink.emit({"t": 2.0, "kind": "view"})
    sink.close()
    assert len(lines(tmp_path / "events" / "node-n1.jsonl")) == 2


def test_a_spare_gets_its_final_name_with_its_rank_and_readers_see_each_event_once(tmp_path):
    sink, follower = JsonlSink(tmp_path, worker_id="abc"), Follower(tmp_path)
    recorder = Recorder((sink,), {"worker_id": "abc"})
    recorder.emit(Kind.SPARE, what="ready")
    assert sink.path == tmp_path / "events" / "worker-abc.jsonl"
    assert len(follower.poll()) == 1
    recorder.identity["rank"] = 2
    recorder.emit(Kind.SPARE, what="activated")
    recorder.emit(Kind.JOINED, epoch=4, step=9)
    sink.close()
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["rank-2-abc.jsonl"]
    assert [event["kind"] for event in follower.poll()] == ["spare", "joined"]


def test_no_event_makes_no_file(tmp_path):
    JsonlSink(tmp_path, worker_id="abc").close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_counted_and_said_once(tmp_path, capsys):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "node-n.jsonl").symlink_to("/dev/full")
    sink = JsonlSink(tmp_path, node_id="n")
    for _ in range(3):
        sink.emit({"t": 1.0, "kind": "view"})
    sink.close()
    assert sink.dropped == 3
    assert capsys.readouterr().err.count("events are being lost") == 1


def test_an_unwritable_folder_does_not_raise(tmp_path, capsys):
    (tmp_path / "events").write_text("a file in the way")
    sink = JsonlSink(tmp_path, worker_id="abc")
    sink.emit({"t": 1.0, "kind": "view"})
    assert sink.dropped == 1


def test_the_line_after_a_torn_one_is_whole(tmp_path, monkeypatch, capsys):
    sink = JsonlSink(tmp_path, node_id="n")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    sink.emit({"t": 1.0, "kind": "view"})
    monkeypatch.undo()
    sink.emit({"t": 2.0, "kind": "view"})
    sink.close()
    follower = Follower(tmp_path)
    assert [event["t"] for event in follower.poll()] == [2.0]
    assert (sink.dropped, follower.bad_lines) == (1, 1)


def test_values_that_json_does_not_know_are_written_as_text(tmp_path):
    sink = JsonlSink(tmp_path, node_id="n")
    circle: list = []
    circle.append(circle)
    sink.emit({"t": 1.0, "kind": "error", "message": Path("/x"), "loss": float("nan")})
    sink.emit({"t": 1.0, "kind": "error", "message": circle})
    sink.close()
    (event,) = lines(tmp_path / "events" / "node-n.jsonl")
    assert event["message"] == "/x"
    assert sink.dropped == 1


def test_after_close_events_are_dropped_quietly(tmp_path, capsys):
    sink = JsonlSink(tmp_path, node_id="n")
    sink.close()
    sink.close()
    sink.emit({"t": 1.0, "kind": "view"})
    assert sink.dropped == 1


def test_needs_exactly_one_identity(tmp_path):
    with pytest.raises(ValueError, match="either"):
        JsonlSink(tmp_path)


def test_what_was_emitted_survives_sigkill(tmp_path):
    code = (
        "import os, signal, sys; from elaswave.telemetry.jsonl import JsonlSink\n"
        "sink = JsonlSink(sys.argv[1], worker_id='abc')\n"
        "for i in range(500): sink.emit({'t': float(i), 'kind': 'view', 'rank': 0, 'epoch': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["epoch"] for event in Follower(tmp_path).poll()] == list(range(500))
