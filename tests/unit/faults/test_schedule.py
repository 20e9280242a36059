"""Random schedules are functions of their seed, leave the job alive, and go through everything over seeds in a row."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.events import Phase, Stage
from elaswave.faults.scenario import What, load, scenario_toml
from elaswave.faults.schedule import Schedule, random_faults

SEEDS = st.integers(0, 10**9)
WORKERS = st.integers(2, 12)
STEPS = st.integers(4, 60)
FAULTS = st.integers(0, 40)
COPIES = st.integers(1, 3)


def audit(schedule: Schedule, copies: int) -> int:
    """Walk through a schedule with what is certain about the members; returns how many are lost.

    Raises:
        AssertionError: somebody is hurt who may not be there, or more are lost at once than copies make up for.
    """
    here, coming, lost, departing = set(range(schedule.workers)), set[int](), 0, {0: 0}
    held = [here]
    for step in range(1, schedule.steps + 1):
        strikes = [fault for fault in schedule.strikes if fault.step == step]
        victims = [rank for fault in strikes if not fault.newcomer for rank in fault.ranks]
        leavers = [leave.rank for leave in schedule.leaves if leave.step == step]
        departing[step] = len(leavers)
        assert len(set(victims)) == len(victims)
        assert {*victims, *leavers} <= here
        away = len(victims) + departing.get(step - 1, 0) + departing.get(step - 2, 0)
        assert away <= copies or not victims
        # what the step begins from is with those who were members before the last to come
        assert not victims or len(held[-1] & here - set(victims)) >= 1
        held.append(set(here))
        here -= {*victims, *leavers}
        lost += len(victims)
        for start in (start for start in schedule.starts if start.step == step):
            coming |= set(start.ranks)
            coming |= {min(set(range(len(here) + 1)) - here) for _ in range(start.newcomers)}
        fragile = any(fault.newcomer and fault.step in (step, step - 1) for fault in schedule.strikes)
        if any(hold.step == step for hold in schedule.holds) and not fragile:
            here |= coming
            coming = set()
        assert here
    return lost


@given(SEEDS, WORKERS, STEPS, FAULTS, COPIES)
@settings(deadline=None)
def test_no_schedule_loses_the_job(seed: int, workers: int, steps: int, faults: int, copies: int) -> None:
    schedule = random_faults(seed, workers, steps, faults=faults, copies=copies)
    assert audit(schedule, copies) <= len(schedule.strikes) <= faults


@given(SEEDS, WORKERS)
@settings(deadline=None, max_examples=20)
def test_a_seed_always_means_the_same(seed: int, workers: int) -> None:
    schedule = random_faults(seed, workers, 24, faults=12)
    assert schedule == random_faults(seed, workers, 24, faults=12)
    assert schedule != random_faults(seed + 1, workers, 24, faults=12)


@given(SEEDS, WORKERS)
@settings(deadline=None, max_examples=20)
def test_it_can_be_written_down(tmp_path_factory: pytest.TempPathFactory, seed: int, workers: int) -> None:
    path: Path = tmp_path_factory.mktemp("scenario") / "faults.toml"
    faults = random_faults(seed, workers, 24, faults=12).faults
    path.write_text(scenario_toml(faults))
    assert load(path).fault == faults


@pytest.mark.parametrize("first", [1, 1000])
def test_seeds_in_a_row_go_through_everything(first: int) -> None:
    schedules = [random_faults(seed, 4, 24, faults=12) for seed in range(first, first + 20)]
    strikes = [fault for schedule in schedules for fault in schedule.strikes]
    assert {fault.phase for fault in strikes if fault.what is What.KILL} == {*map(str, Stage), *map(str, Phase)}
    assert {fault.phase for fault in strikes if fault.newcomer} >= {str(phase) for phase in Phase}
    assert sum(fault.what is What.STOP for fault in strikes) >= 20
    assert sum(fault.phase in list(Phase) for fault in strikes) >= 60
    assert len(strikes) >= 220
    assert sum(len(schedule.leaves) for schedule in schedules) >= 10
    assert sum(start.newcomers for schedule in schedules for start in schedule.starts) >= 10
    assert any(sum(len(start.ranks) for start in schedule.starts) < len(schedule.strikes) for schedule in schedules)
