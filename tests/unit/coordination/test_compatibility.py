"""A worker that does not fit is told what differs, by name, and what to do."""

from collections.abc import Mapping

from elaswave.coordination.compatibility import mismatch
from elaswave.coordination.protocol import WorkerRecord


def worker(versions: Mapping[str, str], digest: str = "d") -> WorkerRecord:
    return WorkerRecord(
        worker_id="0" * 12,
        pid=1,
        local_rank=0,
        address={},
        config_digest=digest,
        versions=versions,
        replaces="",
        member=False,
    )


def test_equal_workers_fit():
    assert mismatch(worker({"torch": "2", "training.seed": "8"}), worker({"torch": "2", "training.seed": "8"})) is None


def test_versions_come_before_settings():
    told = mismatch(worker({"torch": "2"}), worker({"torch": "3", "a.b": "1"}))
    assert told is not None
    assert "runs torch 3, the job runs torch 2; install torch 2" in told


def test_a_setting_is_named_with_both_values():
    told = mismatch(worker({"training.seed": "8"}, "x"), worker({"training.seed": "9"}, "y"))
    assert told is not None
    assert "was started with training.seed = 9, the job with 8; start every node with the same file" in told


def test_defaults_are_not_sent():
    told = mismatch(worker({}, "x"), worker({"training.seed": "9"}, "y"))
    assert told is not None
    assert "training.seed = 9, the job with its default" in told


def test_another_digest_is_enough():
    told = mismatch(worker({}, "x"), worker({}, "y"))
    assert told is not None
    assert "another configuration" in told
