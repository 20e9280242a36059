"""What the demo says at its end, and with which status, from made-up runs."""

from pathlib import Path

import pytest
from support.events import CONFIG, Kill, MadeUpRun, write_run

from elaswave.cli import demo

KILLS = [Kill(rank=2, step=8, replaced_at=12)]


def told(folder: Path, wounded: MadeUpRun, unharmed: MadeUpRun) -> int:
    write_run(folder / "wounded", wounded.events, CONFIG)
    write_run(folder / "unharmed", unharmed.events, CONFIG)
    return demo.tell(folder / "wounded", folder / "unharmed")


def test_a_recovery_with_equal_bits_is_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert told(tmp_path, MadeUpRun(kills=KILLS), MadeUpRun()) == 0
    shown = capsys.readouterr().out
    assert "rank 2  kill" in shown
    assert "Another process has held rank 2 since step 12, done" in shown
    assert shown.splitlines()[-1].startswith("Equal, bit for bit")
    assert (tmp_path / "wounded" / "report.html").exists()


def test_a_rank_that_stays_empty_is_not_called_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert told(tmp_path, MadeUpRun(kills=[Kill(rank=2, step=8)]), MadeUpRun()) == 0
    assert "Another process" not in capsys.readouterr().out


def test_a_run_in_which_nobody_was_lost_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert told(tmp_path, MadeUpRun(), MadeUpRun()) == 1
    assert "No worker was lost" in capsys.readouterr().out


def test_different_bits_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert told(tmp_path, MadeUpRun(kills=KILLS), MadeUpRun(seed=1)) == 1
    assert "This should not have happened: not equal to the reference" in capsys.readouterr().out
