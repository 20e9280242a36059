"""Checkpoints: written while the job trains and dies, whole at every instant, resumed by any number of workers."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training import MiniJob, Zygote, digests, fault
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from elaswave.checkpoint import folders, manifest
from elaswave.cli.export import run as export
from elaswave.clock import Deadline
from elaswave.coordination.bootstrap import EXIT_REFUSED
from elaswave.errors import BenchError
from elaswave.events import Kind
from elaswave.telemetry.follower import Follower

EVERY = ("--checkpoint.every_steps=2", "--checkpoint.keep=10")


def steps_in(folder: Path) -> list[int]:
    return [manifest.read(path).step for path in folders.found(folder / folders.SUBFOLDER)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_any_number_of_workers_goes_on_with_the_same_bits(
    zygote: Zygote, tmp_path: Path, reference: dict[int, str], workers: int
):
    with MiniJob(zygote, tmp_path / "first", overrides=EVERY, workers=5 - workers) as job:
        assert digests(job.wait()) == reference
    steps = steps_in(tmp_path / "first")
    assert (steps[0], steps[-1]) == (2, 6)  # the disk may be too slow for those between
    start = tmp_path / "first" / folders.SUBFOLDER / "step-00000002"
    with MiniJob(zygote, tmp_path / "second", overrides=[f"--checkpoint.resume={start}"], workers=workers) as job:
        assert digests(job.wait()) == {step: digest for step, digest in reference.items() if step > 2}


@pytest.mark.parametrize(
    "override", ["--training.numerics=exact", "--snapshot.mode=gradient", "--parallelism.zero_layout=contiguous"]
)
def test_kills_between_writing_and_after_resuming(
    zygote: Zygote, tmp_path: Path, reference: dict[int, str], override: str
):
    kills = fault([1], "snapshot", 2) + fault([0, 2], "forward", 4)
    with MiniJob(zygote, tmp_path / "first", overrides=[*EVERY, override], faults=kills) as job:
        assert digests(job.wait()) == reference
    assert steps_in(tmp_path / "first")[-1] == 6
    for start in folders.found(tmp_path / "first" / folders.SUBFOLDER):
        step = manifest.read(start).step
        resume = [f"--checkpoint.resume={start}", override]
        again = tmp_path / f"from-{step}"
        with MiniJob(zygote, again, overrides=resume, workers=3, faults=fault([1], "commit", step + 1)) as job:
            assert digests(job.wait()) == {s: digest for s, digest in reference.items() if s > step}


GRIDS = [(1, 4), (2, 4), (4, 4), (1, 1)]
"""Stages and workers."""
STEPS = 4
"""Of each grid; the state after the last is always written, however slow the disk is."""
CONSTANT = ("--optimizer.lr=0.001", "--optimizer.min_lr=0.001")
"""A learning rate that does not depend on how many steps a run has."""


@pytest.mark.parametrize("harm", [False, True])
def test_every_grid_goes_on_from_another(zygote: Zygote, tmp_path: Path, harm: bool):
    """A run is handed on from grid to grid, while workers die as checkpoints are written."""
    with MiniJob(zygote, tmp_path / "reference", overrides=CONSTANT, workers=1, steps=STEPS * len(GRIDS)) as job:
        reference = digests(job.wait())
    resume = list[str]()
    for at, (stages, workers) in zip(range(0, STEPS * len(GRIDS), STEPS), GRIDS, strict=True):
        folder = tmp_path / f"{stages}-stages-of-{workers}"
        kills = fault([1], "snapshot", at + 2) + fault([workers - 1], "gather", at + 3) if harm and workers > 1 else ""
        overrides = [*EVERY, *CONSTANT, f"--parallelism.stages={stages}", *resume]
        with MiniJob(zygote, folder, overrides=overrides, workers=workers, faults=kills, steps=at + STEPS) as job:
            assert digests(job.wait()) == {step: reference[step] for step in range(at + 1, at + STEPS + 1)}
        resume = [f"--checkpoint.resume={folder / folders.SUBFOLDER / f'step-{at + STEPS:08d}'}"]


@pytest.mark.parametrize(("stages", "workers"), [(2, 4), (4, 4), (2, 3)])
def test_parameters_of_a_pipeline_are_exported_under_their_names(
    zygote: Zygote, tmp_path: Path, reference: dict[int, str], stages: int, workers: int
):
    overrides = [*EVERY, f"--parallelism.stages={stages}"]
    with MiniJob(zygote, tmp_path / "pipeline", overrides=overrides, workers=workers) as job:
        assert digests(job.wait()) == reference
    with MiniJob(zygote, tmp_path / "one", overrides=EVERY, workers=1) as job:
        job.wait()
    for name in ("pipeline", "one"):
        assert export([str(tmp_path / name), str(tmp_path / f"{name}.safetensors")]) == 0
    found, wanted = (load_file(tmp_path / f"{name}.safetensors") for name in ("pipeline", "one"))
    assert found.keys() == wanted.keys()
    assert "blocks.0.attend.weight" in found
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_only_the_newest_are_kept(zygote: Zygote, folder: Path):
    with MiniJob(zygote, folder, overrides=["--checkpoint.every_steps=1", "--checkpoint.keep=2"], workers=2) as job:
        history = job.wait()
    names = sorted(path.name for path in (folder / folders.SUBFOLDER).iterdir())
    assert len(names) == 2
    assert names[-1] == "step-00000006"
    assert any(note.kind == "checkpoint" for note in history.notes)


def test_torch_reads_what_is_written(zygote: Zygote, folder: Path, tmp_path: Path):
    with MiniJob(zygote, folder, overrides=EVERY, workers=3) as job:
        job.wait()
    newest = folders.resolve(str(folder))
    told = manifest.read(newest)
    dcp_to_torch_save(newest, tmp_path / "all.pt")
    state = torch.load(tmp_path / "all.pt", weights_only=True)
    for name, shape in told.shapes.items():
        assert state[f"model.{name}"].reshape(shape).isfinite().all()
        assert state[f"optim.{name}.exp_avg"].count_nonzero() > 0


def test_state_that_is_gone_names_the_checkpoint_to_go_on_from(zygote: Zygote, folder: Path, tmp_path: Path):
    overrides = ["--snapshot.copies=0", "--checkpoint.every_steps=3"]
    with MiniJob(zygote, folder, steps=1000, overrides=overrides, replace=False) as job:
        deadline, follower = Deadline(30), Follower(folder)
        while not any(event["kind"] == Kind.CHECKPOINT for event in follower.poll()):
            assert not deadline.passed(), job.log()
        os.kill(next(pid for pid, local_rank in job.running.items() if local_rank == 1), signal.SIGKILL)
        while job.running:
            with contextlib.suppress(BenchError):  # one per worker that fails
                job.wait(timeout_s=30)
        assert sorted(job.statuses) == [-9, EXIT_REFUSED, EXIT_REFUSED, EXIT_REFUSED], job.log()
        advice = job.log().partition("--checkpoint.resume=")[2].split()[0]
    start = manifest.read(Path(advice)).step
    overrides = [f"--checkpoint.resume={advice}", f"--training.steps={start + 2}"]
    with MiniJob(zygote, tmp_path / "again", steps=1000, overrides=overrides, workers=2) as job:
        history = job.wait()
    assert sorted(digests(history)) == [start + 1, start + 2]
    assert any("training.steps" in note.text for note in history.notes)


def _damage_tensor(folder: Path) -> None:
    path = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    # the middle of the largest stored tensor, not of the wrapping around it
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _lose_a_file(folder: Path) -> None:
    next(folder.glob("*.distcp")).unlink()


def _other_model(folder: Path) -> None:
    values = json.loads((folder / manifest.FILE).read_text())
    values["config"]["model"]["width"] = 64
    (folder / manifest.FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("harm", "told"),
    [(_damage_tensor, "checkpoint"), (_lose_a_file, "cannot be read"), (_other_model, "model.width = 64")],
)
def test_a_damaged_checkpoint_is_refused_by_name(zygote: Zygote, tmp_path: Path, harm, told: str):
    with MiniJob(zygote, tmp_path / "first", overrides=EVERY, workers=2, steps=4) as job:
        job.wait()
    start = folders.resolve(str(tmp_path / "first"))
    harm(start)
    overrides = [f"--checkpoint.resume={start}"]
    with MiniJob(zygote, tmp_path / "second", overrides=overrides, workers=2, replace=False, steps=6) as job:
        while job.running:
            with contextlib.suppress(BenchError):
                job.wait(timeout_s=30)
        assert set(job.statuses) == {EXIT_REFUSED}, job.log()
        assert told in job.log()
        assert str(start) in job.log()
