"""SIGKILL anywhere: in every part of a step and every phase of a recovery, of one worker or several.

The job finishes, and every step has the bits of the run of one worker that nobody harmed.
"""

from pathlib import Path

import pytest
from support.training import MiniJob, Zygote, digests, fault

from elaswave.events import Phase, Stage
from elaswave.report.facts import History

STAGES = [str(stage) for stage in Stage]
PHASES = [str(phase) for phase in Phase]


def run(zygote: Zygote, folder: Path, faults: str, **options: object) -> History:
    with MiniJob(zygote, folder, faults=faults, **options) as job:  # type: ignore[arg-type]
        history = job.wait()
        assert len(history.faults) == faults.count("[[fault]]") or "ranks = [1, 2]" in faults
        return history


def check(history: History, reference: dict[int, str]) -> None:
    assert digests(history) == reference


def test_healthy_run_of_four(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    check(run(zygote, folder, ""), reference)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 2])
def test_one_worker_in_every_part_of_a_step(
    zygote: Zygote, folder: Path, reference: dict[int, str], stage: str, rank: int
) -> None:
    check(run(zygote, folder, fault([rank], stage)), reference)


@pytest.mark.parametrize("stage", STAGES)
def test_two_at_once(zygote: Zygote, folder: Path, reference: dict[int, str], stage: str) -> None:
    check(run(zygote, folder, fault([1, 2], stage)), reference)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("second", [0, 3])
def test_another_one_in_every_phase_of_the_recovery(
    zygote: Zygote, folder: Path, reference: dict[int, str], phase: str, second: int
) -> None:
    check(run(zygote, folder, fault([1], "backward") + fault([second], phase)), reference)


@pytest.mark.parametrize("stage", ["backward", "gather"])
def test_without_replacement(zygote: Zygote, folder: Path, reference: dict[int, str], stage: str) -> None:
    history = run(zygote, folder, fault([1], stage, 2) + fault([3], "reduce", 4), replace=False)
    check(history, reference)
    assert len(history.views[-2].members if not history.views[-1].members else history.views[-1].members) <= 2


def test_down_to_one_and_back_up(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    faults = fault([1], "forward", 2) + fault([2], "vote", 3) + fault([3], "commit", 4) + fault([1], "reduce", 5)
    check(run(zygote, folder, faults), reference)
