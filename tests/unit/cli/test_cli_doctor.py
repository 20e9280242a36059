"""`elaswave doctor`: every fact that is bad is named with its remedy, and this machine can run a job."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from elaswave.cli import doctor
from elaswave.cli.doctor import Level, judge
from elaswave.cli.machine import Machine, look
from elaswave.errors import ConfigError

GOOD = Machine(
    platform="linux",
    python=(3, 11),
    torch="2.13.0",
    torch_too_old=None,
    torch_lacks=(),
    has_gloo=True,
    has_nccl=False,
    handlers=("c10d", "elaswave"),
    pidfd=True,
    memfd=True,
    loopback="",
    address="",
    port=29500,
    port_problem="",
    huge_pages="madvise",
    clock_source="tsc",
    synchronized=True,
    open_files=65536,
    cores=2,
    folder="/runs",
    free_bytes=1 << 40,
)


def test_a_good_machine_has_nothing_to_mend():
    findings = judge(GOOD)
    assert {one.level for one in findings} == {Level.OK}
    assert not any(one.remedy for one in findings)
    assert len({one.what for one in findings}) == len(findings)


@pytest.mark.parametrize(
    ("what", "level", "bad"),
    [
        ("python", Level.FAILURE, {"python": (3, 10)}),
        ("python", Level.WARNING, {"python": (3, 14)}),
        ("torch", Level.FAILURE, {"torch": None}),
        ("torch", Level.FAILURE, {"torch_too_old": "install torch 2.6 or newer"}),
        ("torchrun plug-in", Level.FAILURE, {"handlers": ("c10d",)}),
        ("torchrun's agent", Level.WARNING, {"torch_lacks": ("TailLog is gone",)}),
        ("system", Level.FAILURE, {"platform": "darwin"}),
        ("pidfd", Level.FAILURE, {"pidfd": False}),
        ("shared memory", Level.WARNING, {"memfd": False}),
        ("huge pages", Level.WARNING, {"huge_pages": "never"}),
        ("huge pages", Level.WARNING, {"huge_pages": None}),
        ("clock", Level.WARNING, {"clock_source": "hpet"}),
        ("wall clock", Level.WARNING, {"synchronized": False}),
        ("loopback", Level.FAILURE, {"loopback": "Network is unreachable"}),
        ("host name", Level.WARNING, {"address": "Name or service not known"}),
        ("port 29500", Level.FAILURE, {"port_problem": "Address already in use"}),
        ("open files", Level.WARNING, {"open_files": 1024}),
        ("open files", Level.FAILURE, {"open_files": 64}),
        ("run folder", Level.FAILURE, {"free_bytes": None}),
        ("run folder", Level.WARNING, {"free_bytes": 1 << 20}),
    ],
)
def test_whatever_is_bad_is_named_with_its_remedy(what: str, level: Level, bad: dict[str, object]):
    found = [one for one in judge(replace(GOOD, **bad)) if one.level is not Level.OK]
    assert [(one.what, one.level) for one in found] == [(what, level)]
    assert found[0].remedy


def test_this_machine_can_run_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert doctor.run(["--runs", str(tmp_path / "not" / "yet")]) == 0
    assert "jobs can run here" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert doctor.run(["--runs", str(tmp_path), "--json", "--port", str(port)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [one["what"] for one in told["findings"] if one["level"] == "failure"] == [f"port {port}"]


def test_a_folder_that_is_a_file_cannot_hold_runs(tmp_path: Path):
    (tmp_path / "file").touch()
    assert look(tmp_path / "file" / "runs", None).free_bytes is None


def test_a_port_must_be_one():
    with pytest.raises(ConfigError, match="--port"):
        doctor.run(["--port", "70000"])
