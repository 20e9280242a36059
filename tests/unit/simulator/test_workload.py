"""Step times in closed form: close to the steps that are run operation by operation."""

import math

import numpy as np
import pytest

from elaswave.bench.throughput import CASES, Case, lost_ranks
from elaswave.config import Schedule
from elaswave.simulator.comparison import compare
from elaswave.simulator.workload import TIMES, Periods, Workload, busy

SPLIT = Schedule.SPLIT
TOLERANCES = {"elaswave": 0.03, "torchft": 0.01, "restart": 0.01, "recycle": 0.12, "oobleck": 0.15}
"""ReCycle's bubbles are taken for filled, and Oobleck's micro-batches for shared out once all pipelines are full."""


def job(case: Case, lost: tuple[int, ...] = ()) -> tuple[Workload, np.ndarray]:
    grid = case.grid
    alive = np.ones(grid.ranks, bool)
    alive[list(lost)] = False
    work = Workload(
        profile=grid.profile(), stages=grid.stages, micro_batches=grid.micro_batches, schedule=Schedule.SPLIT
    )
    return work, alive


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_close_to_steps_that_are_run(case: Case) -> None:
    lost = lost_ranks(case, 0)
    work, alive = job(case, lost)
    for name, outcome in compare(case.grid, lost, SPLIT).items():
        expected = case.grid.micro_batches / outcome.throughput
        assert TIMES[name](work, alive) == pytest.approx(expected, rel=TOLERANCES[name]), name


def test_who_cannot_go_on_never_ends() -> None:
    work, alive = job(CASES[0], (0, 6))
    assert math.isinf(TIMES["torchft"](work, alive))
    assert not math.isinf(TIMES["recycle"](work, np.roll(alive, 1)))
    assert all(math.isinf(time(work, np.zeros(12, bool))) for time in TIMES.values())


def test_times_are_known_by_all_that_they_depend_on() -> None:
    work, alive = job(CASES[0], (1,))
    periods = Periods(work)
    for name, time in TIMES.items():
        for lost in ((), (1,), (2,), (1, 2), (1, 7), (7,)):
            _, alive = job(CASES[0], lost)
            assert periods.of(name, alive) == time(work, alive), (name, lost)


def test_who_idles_is_not_missed() -> None:
    work, alive = job(CASES[0], (1,))
    assert np.flatnonzero(busy("torchft", work, alive)).tolist() == [6, 7, 8, 9, 10, 11]
    assert np.flatnonzero(busy("restart", work, alive)).tolist() == [0, 2, 3, 4, 5, 6]
    assert (busy("recycle", work, alive) == alive).all()
