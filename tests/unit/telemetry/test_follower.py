"""Reading events while they are written."""

from elaswave.telemetry import follower as module
from elaswave.telemetry.follower import Follower


def append(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_a_folder_that_does_not_exist_yet_is_empty(tmp_path):
    assert Follower(tmp_path / "later").poll() == []


def test_each_event_once_in_order_of_time_over_all_files(tmp_path):
    follower = Follower(tmp_path)
    append(tmp_path / "events" / "rank-0-a.jsonl", '{"t": 2}\n{"t": 4}\n')
    append(tmp_path / "events" / "node-n.jsonl", '{"t": 3}\n')
    assert [event["t"] for event in follower.poll()] == [2, 3, 4]
    assert follower.poll() == []
    append(tmp_path / "events" / "rank-1-b.jsonl", '{"t": 5}\n')
    assert [event["t"] for event in follower.poll()] == [5]


def test_a_torn_line_waits_for_its_end(tmp_path):
    follower, path = Follower(tmp_path), tmp_path / "events" / "rank-0-a.jsonl"
    append(path, '{"t": 1}\n{"t": ')
    assert [event["t"] for event in follower.poll()] == [1]
    append(path, "2}\n")
    assert [event["t"] for event in follower.poll()] == [2]


def test_lines_that_are_no_events_are_counted(tmp_path):
    follower = Follower(tmp_path)
    append(tmp_path / "events" / "rank-0-a.jsonl", 'rubbish\n[1]\n\n{"t": 1}\n{"t": "x"}\n')
    assert len(follower.poll()) == 2
    assert follower.bad_lines == 2


def test_a_long_file_is_read_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 30)
    append(tmp_path / "events" / "rank-0-a.jsonl", "".join(f'{{"t": {i}}}\n' for i in range(20)) + "x" * 40 + "\n")
    follower = Follower(tmp_path)
    assert len(follower.poll()) < 5
    assert [event["t"] for event in Follower(tmp_path).drain()] == list(range(20))
