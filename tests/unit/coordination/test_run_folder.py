"""Run folders get new names, `latest` follows, and places that cannot be used are refused in words."""

from pathlib import Path

import pytest

from elaswave.coordination import run_folder
from elaswave.coordination.rendezvous import ElasticRendezvous
from elaswave.errors import LaunchError


def test_name_is_time_and_name(tmp_path: Path):
    folder = run_folder.create(tmp_path / "runs", "my run/../x", wall_s=0.0)
    assert folder.name == "19700101-000000-my-run-..-x"
    assert (tmp_path / "runs" / "latest").resolve() == folder.resolve()


def test_two_runs_in_one_second_do_not_share_a_folder(tmp_path: Path):
    first, second = (run_folder.create(tmp_path, "a", wall_s=0.0) for _ in range(2))
    assert first != second
    assert (tmp_path / "latest").resolve() == second.resolve()


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(LaunchError, match=r"cannot make a run folder .* --run.folder"):
        run_folder.create(tmp_path / "runs", "a")


def test_a_full_disk_is_an_error(tmp_path: Path):
    with pytest.raises(LaunchError, match=r"MiB are free in .* may need"):
        run_folder.create(tmp_path, "a", space_bytes=2**60)


def test_latest_that_is_a_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").write_text("")
    assert run_folder.create(tmp_path, "a").is_dir()
    assert (tmp_path / "latest" / "mine").exists()


def test_torchrun_jobs_of_one_id_and_start_share_a_folder(tmp_path: Path):
    environ = {run_folder.PARENT_VARIABLE: str(tmp_path)}
    assert run_folder.known_before_start("none", environ) is None
    folder = run_folder.of_torchrun("my job", "20260101-000000", environ)
    assert folder == tmp_path / "20260101-000000-my-job"


def test_the_folder_of_a_launched_job_is_known_by_variable_or_name(tmp_path: Path):
    environ = {run_folder.PARENT_VARIABLE: str(tmp_path)}
    name = "20260101-000000-run"
    assert run_folder.known_before_start(name, environ) == tmp_path / name
    environ[run_folder.VARIABLE] = str(tmp_path / "other")
    assert run_folder.known_before_start(name, environ) == tmp_path / "other"


def test_torchrun_is_told_of_a_full_disk_and_where_else_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "SPACE_BYTES", 2**60)
    with pytest.raises(LaunchError, match=r"MiB are free in .*make room, or name another place in ELASWAVE_RUNS"):
        ElasticRendezvous._make_folder(tmp_path / "runs" / "new", 0)
    old = tmp_path / "old"
    old.mkdir()
    assert ElasticRendezvous._make_folder(old, 0) == old, "a node that comes back to its job is not turned away"
