"""`elaswave plan`, as called from a shell: what would happen without some workers, as a picture."""

import subprocess
import sys
from pathlib import Path

import pytest

from elaswave.cli.main import main

CONFIG = str(Path(__file__).parents[3] / "configs/train/gpt_tiny.toml")
GRID = ("--parallelism.stages", "3", "--workers", "9")
OWN = """
import torch
from torch import nn

class Own:
    def __init__(self, config):
        self.width = config.width
    def layers(self):
        return [nn.Linear(self.width, self.width) for _ in range(6)]
    def loss_sum(self, output, targets):
        return output.sum()
"""


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", CONFIG, *words]) == 0
    return capsys.readouterr().out


def test_before_and_after(capsys: pytest.CaptureFixture[str]):
    out = shown(capsys, "--lose", "3", "7", *GRID)
    before, after = out.split("after: 7 workers")
    assert "before: 9 workers" in before
    assert "lost" not in before
    assert "3: lost" in after
    assert "7: lost" in after
    assert "without rank 3, without rank 7: stages of 2+2+3 workers" in after
    assert "throughput: " in after
    assert "7 of 9 workers could do 77.8 %" in after
    assert "to move: " in after
    assert "MHz" not in out


def test_a_worker_whose_layers_are_its_own_shows_them(capsys: pytest.CaptureFixture[str]):
    words = ("--lose", "3", "--workers", "6", "--parallelism.stages", "3", "--parallelism.fluid=true")
    out = shown(capsys, *words, "--parallelism.schedule=1f1b-split", "--training.train_batch_size=96")
    before, after = out.split("after: 5 workers")
    assert not [line for line in before.splitlines() if "│ layers" in line]
    assert [line for line in after.splitlines() if "│ layers" in line]


def test_nothing_is_lost_when_nothing_is_said_to_be(capsys: pytest.CaptureFixture[str]):
    out = shown(capsys)
    assert "plan: 2 workers" in out
    assert "0: 4 " in out
    assert "before" not in out


def test_clocks_are_shown_when_they_are_set(capsys: pytest.CaptureFixture[str]):
    out = shown(capsys, "--lose", "3", *GRID, "--dvfs.backend=simulated", "--dvfs.tolerance", "0.02")
    assert "1100 MHz" in out
    assert "clocks, as of a simulated device: " in out
    assert "raised to 1100 MHz" in out


def test_many_workers_are_summed_up(capsys: pytest.CaptureFixture[str]):
    out = shown(
        capsys, "--lose", "3", "6", "--workers", "80", "--parallelism.stages", "2", "--training.train_batch_size=160"
    )
    assert "39 workers: 2-3 each" in out
    assert "(1 lost)" in out


def test_a_stage_without_anyone(capsys: pytest.CaptureFixture[str]):
    out = shown(capsys, "--lose", "1", "3", "--parallelism.stages", "2", "--workers", "4", "--per-node", "1")
    assert "stages of 2+0 workers, layers 0-5 | none" in out
    assert "to move" in out


def test_a_ninth_stage_needs_more_layers(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", CONFIG, "--lose", "0", "--parallelism.stages", "9"]) == 2
    assert "parallelism.stages = 9: the model has 6 layers; use at most 6 stages" in capsys.readouterr().err


def test_state_that_is_on_no_survivor_is_told(capsys: pytest.CaptureFixture[str]):
    out = shown(capsys, "--lose", "1", "2", "3", "--workers", "4", "--snapshot.copies", "1", "--per-node", "1")
    assert "lost: the state of rank" in out
    assert "goes back to its last checkpoint" in out
    assert "paused: elasticity.min_workers = 2" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lose", "4", "--workers", "4"), "--lose = 4: there is no such rank; use some of 0 .. 3"),
        (("--lose", "-1"), "--lose = -1: there is no such rank"),
        (("--lose", "0", "1", "--workers", "2"), "--lose = (0, 1): nobody of 2 workers is left"),
        (("--workers", "0"), "--workers = 0: give at least 1"),
        (("--per-node", "0"), "--per-node = 0: give at least 1"),
        (("--parallelism.stage", "2"), "unknown key"),
        (("--model.name", "mixer", "--model.sequence_length", "65"), "model.sequence_length = 65"),
    ],
)
def test_wrong_use_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str], words, said):
    assert main(["plan", CONFIG, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_missing_config_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "nowhere.toml"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_model_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "planned_model.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    out = shown(capsys, "--lose", "1", "--model.name", "planned_model:Own", "--parallelism.stages", "2")
    assert "layers 0-2 | 3-5" in out


def test_starts_without_torch():
    words = ["plan", CONFIG, "--lose", "3", "--dvfs.backend", "simulated"]
    code = f"import sys; from elaswave.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
