"""Schedules of kills, hangs, leaves and joins, drawn from seeds: every run has the bits of one worker.

`elaswave bench consistency` does the same with many seeds, on all grids, models and settings.
"""

from pathlib import Path

import pytest
from support.training import Zygote

from elaswave.bench.campaign import GRIDS, case_of, differences, play, reference_of
from elaswave.report.facts import Commit, History

pytestmark = pytest.mark.timeout(300)
LONG_SEEDS = range(101, 121)


def check(zygote: Zygote, folder: Path, seed: int, *, faults: int, steps: int) -> None:
    case = case_of(seed, faults=faults, steps=steps)
    reference = reference_of(zygote, folder / "one", case)
    played = play(zygote, folder / "wounded", case, reference, timeout_s=200)
    assert not played.failure, f"seed {seed}: {case}\n{played.failure}"
    assert played.mismatches == 0
    assert played.loss_deviation == 0.0
    assert played.tally.faults


@pytest.mark.parametrize("seed", [2, 5, 8])
def test_a_few_wounds(zygote: Zygote, folder: Path, seed: int) -> None:
    check(zygote, folder, seed, faults=4, steps=9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", LONG_SEEDS)
def test_many_wounds(zygote: Zygote, folder: Path, seed: int) -> None:
    check(zygote, folder, seed, faults=12, steps=24)


def test_seeds_go_through_all_that_a_job_can_be() -> None:
    cases = [case_of(seed, faults=12) for seed in range(1, 21)]
    assert {case.grid for case in cases} == set(GRIDS)
    for grid in GRIDS:
        mine = [case for case in cases if case.grid == grid]
        assert {case.model for case in mine} == {case.model for case in cases}
        assert len({case.config.training.precision for case in mine}) == 2
    parallel = [case.config.parallelism for case in cases]
    assert len({settings.schedule for settings in parallel}) == 3
    assert {settings.fluid for settings in parallel} == {True, False}
    assert {settings.virtual_stages for settings in parallel} == {1, 2}
    assert len({settings.zero_layout for settings in parallel}) == 2
    assert len({case.config.snapshot.mode for case in cases}) == 2
    assert len({case.config.training.activation_checkpointing for case in cases}) == 2


def commit(step: int, digest: str, loss: float = 1.0, rank: int = 0) -> Commit:
    return Commit(
        t=0.0,
        rank=rank,
        worker_id="a",
        step=step,
        epoch=1,
        loss=loss,
        digest=digest,
        micro_batches=(),
        tokens=1,
        step_s=None,
        counted=None,
    )


def test_a_step_that_is_missing_or_told_differently_by_anyone_is_found() -> None:
    wanted = History(commits=tuple(commit(step, f"{step}") for step in range(1, 6)))
    told = [commit(1, "1"), commit(2, "2"), commit(2, "x", rank=1), commit(3, "3", loss=2.0), commit(5, "5")]
    assert differences(History(commits=tuple(told)), wanted) == {2, 3, 4}
