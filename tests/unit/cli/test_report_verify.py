"""`elaswave report` and `elaswave verify`, as called from a shell."""

import json
import subprocess
import sys

import pytest
from support.events import CONFIG, Kill, MadeUpRun, write_run

from elaswave.cli import report, verify
from elaswave.errors import ConfigError


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "hurt", MadeUpRun(kills=[Kill(rank=2, step=8)]).events, CONFIG)
    write_run(tmp_path / "calm", MadeUpRun().events, CONFIG)
    write_run(tmp_path / "other", MadeUpRun(seed=1).events, CONFIG)
    write_run(tmp_path / "seed", MadeUpRun().events, {**CONFIG, "training": {**CONFIG["training"], "seed": 8}})
    (tmp_path / "latest").symlink_to("hurt")
    return tmp_path


def test_report_writes_three_files_and_prints_the_table(runs, capsys):
    assert report.run(["--runs", str(runs), "--reference", "calm"]) == 0
    shown = capsys.readouterr().out
    assert "rank 2  kill" in shown
    assert "320 trained, 0 lost, 0 twice" in shown
    assert "all 20 steps are equal" in shown
    assert json.loads((runs / "hurt" / "report.json").read_text())["ok"] is True
    assert (runs / "hurt" / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((runs / "hurt" / "trace.json").read_text())["traceEvents"]
    assert sorted(p.name for p in (runs / "hurt").iterdir()) == [
        "config.json",
        "events",
        "report.html",
        "report.json",
        "trace.json",
    ]


def test_report_prints_json(runs, capsys):
    assert report.run([str(runs / "hurt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recoveries"][0]["lost_ranks"] == [2]


def test_the_torn_last_line_of_a_killed_worker_does_no_harm(runs, capsys):
    with next((runs / "hurt" / "events").glob("rank-2-*")).open("a") as file:
        file.write('{"t": 17, "kind": "step_comm')
    assert report.run([str(runs / "hurt")]) == 0
    assert "verdict       good" in capsys.readouterr().out


def test_a_run_that_is_not_there(runs):
    with pytest.raises(ConfigError, match="no run folder"):
        report.run(["nothing", "--runs", str(runs)])


@pytest.mark.parametrize(
    ("other", "status", "said"),
    [
        ("calm", 0, "equal: all 20 steps are equal"),
        ("other", 1, "different: step 1 differs"),
        ("seed", 2, "incomparable: the runs have different settings"),
    ],
)
def test_verify(runs, capsys, other, status, said):
    assert verify.run(["hurt", other, "--runs", str(runs)]) == status
    shown = capsys.readouterr().out
    assert shown.startswith(said)
    assert ("digest" in shown) == (other == "other")
    assert ("training.seed" in shown) == (other == "seed")


def test_verify_prints_json(runs, capsys):
    assert verify.run(["hurt", "other", "--runs", str(runs), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_mismatch_step"] == 1


def test_the_installed_command_reports_the_status(runs):
    words = [sys.executable, "-m", "elaswave.cli.main", "verify", str(runs / "hurt"), str(runs / "other")]
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 1
