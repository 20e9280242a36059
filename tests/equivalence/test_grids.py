"""Pipelines of any grid have the bits of one worker: healthy, with losses in every part of a step, in any order."""

from pathlib import Path

import pytest
from support.training import MiniJob, Zygote, digests, fault

from elaswave.events import Phase, Stage
from elaswave.report.facts import History

STAGES = [str(stage) for stage in Stage]
PHASES = [str(phase) for phase in Phase]
GRIDS = [(2, 4, "1f1b"), (2, 4, "gpipe"), (2, 4, "1f1b-split"), (2, 3, "1f1b-split"), (4, 4, "1f1b"), (3, 6, "1f1b")]
"""Stages, workers and schedule."""


def run(
    zygote: Zygote,
    folder: Path,
    *,
    stages: int,
    workers: int,
    faults: str = "",
    overrides: tuple[str, ...] = (),
    **rest: object,
) -> History:
    words = ["--parallelism.stages", str(stages), *overrides]
    with MiniJob(zygote, folder, workers=workers, faults=faults, overrides=words, **rest) as job:  # type: ignore[arg-type]
        return job.wait()


@pytest.mark.parametrize(("stages", "workers", "schedule"), GRIDS)
def test_healthy(
    zygote: Zygote, folder: Path, reference: dict[int, str], stages: int, workers: int, schedule: str
) -> None:
    history = run(zygote, folder, stages=stages, workers=workers, overrides=("--parallelism.schedule", schedule))
    assert digests(history) == reference


def test_virtual_stages(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    history = run(zygote, folder, stages=2, workers=4, overrides=("--parallelism.virtual_stages", "2"))
    assert digests(history) == reference


def test_layers_that_two_stages_hold(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    history = run(zygote, folder, stages=2, workers=3, overrides=("--parallelism.fluid", "true"))
    assert digests(history) == reference


@pytest.mark.parametrize("stage", ["forward", "reduce", "commit"])
@pytest.mark.parametrize("lost", [[4], [0, 4]])
def test_replicas_that_work_apart(
    zygote: Zygote, folder: Path, reference: dict[int, str], stage: str, lost: list[int]
) -> None:
    overrides = ("--parallelism.fluid", "true", "--parallelism.schedule", "1f1b-split")
    faults = fault(lost, stage)
    history = run(zygote, folder, stages=3, workers=6, faults=faults, overrides=overrides, replace=False)
    assert digests(history) == reference


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 3])
def test_one_worker_in_every_part_of_a_step(
    zygote: Zygote, folder: Path, reference: dict[int, str], stage: str, rank: int
) -> None:
    history = run(zygote, folder, stages=2, workers=4, faults=fault([rank], stage))
    assert digests(history) == reference
    assert len(history.faults) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_whole_stage_at_once(zygote: Zygote, folder: Path, reference: dict[int, str], stage: str) -> None:
    history = run(zygote, folder, stages=2, workers=4, faults=fault([1, 3], stage), replace=False)
    assert digests(history) == reference


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("second", [0, 3])
def test_another_one_in_every_phase_of_the_recovery(
    zygote: Zygote, folder: Path, reference: dict[int, str], phase: str, second: int
) -> None:
    history = run(zygote, folder, stages=2, workers=4, faults=fault([1], "backward") + fault([second], phase))
    assert digests(history) == reference


def test_down_to_one_and_back_up(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    faults = fault([1], "forward", 2) + fault([2], "vote", 3) + fault([3], "commit", 4) + fault([1], "reduce", 5)
    assert digests(run(zygote, folder, stages=2, workers=4, faults=faults)) == reference
