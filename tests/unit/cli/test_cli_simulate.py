"""`elaswave simulate`, as called from a shell."""

from pathlib import Path

import pytest

from elaswave.cli.main import main

CONFIG = str(Path(__file__).parents[3] / "configs/train/gpt_tiny.toml")
WORDS = ("--days", "2", "--parallelism.stages", "3", "--mtbf-h", "100")


def test_every_policy_has_a_row_and_the_best_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", CONFIG, "--ranks", "24", "--seeds", "2", *WORDS]) == 0
    out = capsys.readouterr().out
    assert "24 workers, 2 days, 2 seeds" in out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == "elaswave"
    assert sorted(rows) == ["elaswave", "oobleck", "recycle", "restart", "torchft"]


def test_workers_may_have_several_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", CONFIG, "--ranks", "48", "--devices-per-worker", "4", *WORDS]) == 0
    assert "12 workers, 2 days, 1 seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ranks", "2"), "--ranks = 2: give at least 3 workers"),
        (("--ranks", "24", "--seeds", "0"), "--seeds = 0: give a positive number"),
        (("--ranks", "24", "--devices-per-worker", "3"), "--devices-per-worker = 3: must divide --per-node = 8"),
        (("--ranks", "24", "--parallelism.stages", "9"), "parallelism.stages = 9: the model has 6 layers"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str) -> None:
    assert main(["simulate", CONFIG, *WORDS, *words]) == 2
    assert told in capsys.readouterr().err
