"""`elaswave export` gives the parameters of a checkpoint to other programs."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from elaswave.checkpoint import folders, manifest, tensors
from elaswave.cli.main import main

SHAPES = {"stack.0.weight": (3, 4), "scale": ()}
SPANS = [("stack.0.weight", 0, 12), ("scale", 12, 13)]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with one checkpoint, written by two workers."""
    folder = folders.complete(tmp_path / folders.SUBFOLDER, 5)
    folder.mkdir(parents=True)
    for part, (start, stop) in enumerate([(0, 7), (7, 13)]):
        values = {"master": torch.arange(start, stop).float(), "exp_avg": torch.zeros(stop - start)}
        tensors.write_part(folder, part, list(tensors.pieces(SPANS, [(start, stop)], values)))
    tensors.finish(folder, 2, "test")
    whole = manifest.Manifest(
        step=5, digest="ab", num_parts=2, scalars={}, shapes=SHAPES, config={}, corpus="", versions={}
    )
    folders.write_file(folder / manifest.FILE, whole.text())
    return tmp_path


def test_parameters_come_by_name_and_in_their_shape(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    target = run_folder / "model.safetensors"
    assert main(["export", str(run_folder), str(target)]) == 0
    assert "2 tensors of step 5" in capsys.readouterr().out
    with safe_open(target, "pt") as file:
        assert set(file.keys()) == set(SHAPES)
        assert torch.equal(file.get_tensor("stack.0.weight"), torch.arange(12.0).reshape(3, 4))
        assert file.get_tensor("scale").item() == 12.0
        assert file.metadata()["step"] == "5"
    assert [path.name for path in run_folder.glob(".*")] == []


def test_what_cannot_be_is_one_clear_line(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "/nowhere", "x"]) == 2
    assert main(["export", str(run_folder), "/nowhere/x.safetensors"]) == 2
    next(run_folder.rglob("__1_*")).write_bytes(b"")
    assert main(["export", str(run_folder), str(run_folder / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "no such folder" in lines[0]
    assert "/nowhere/x.safetensors" in lines[1]
    assert "cannot be read" in lines[2]
    assert not (run_folder / "x").exists()
