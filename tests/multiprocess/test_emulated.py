"""Every policy's plan on the real pipeline, in processes: as long as simulated, with the losses of all others."""

import pytest

from elaswave.bench import throughput
from elaswave.bench.emulated import emulate
from elaswave.config import Schedule
from elaswave.simulator.comparison import Grid
from elaswave.simulator.pipeline import Machine

GRID = Grid(replicas=2, stages=2, layers=6, micro_batches=8)


@pytest.mark.parametrize("schedule", list(Schedule))
def test_as_long_as_simulated_and_with_the_same_losses(schedule: Schedule) -> None:
    rows = emulate(GRID, [1], schedule, Machine(message=0.25, update=1.0), timeout_s=60)
    assert set(rows) == {"elaswave", "torchft", "recycle", "oobleck", "restart"}
    losses = rows["elaswave"].losses
    assert sorted(losses) == list(range(8))
    for name, row in rows.items():
        assert row.emulated == pytest.approx(row.simulated, rel=1e-9), name
        assert row.losses == losses, name
        assert row.emulated >= 3 * 6 * 8 / 3, "three workers cannot be faster"


def test_a_deviation_is_told() -> None:
    rows = emulate(GRID, [1], Schedule.SPLIT, Machine(message=0.25), policies={}, timeout_s=60)
    assert rows == {}
    case = throughput.Case(name="2x2", grid=GRID, lost=1)
    good = throughput.emulate_case(case, Schedule.SPLIT)
    assert all(target.met for target in throughput.emulation_targets(case, good))
    bad = {
        name: type(row)(emulated=1.04 * row.simulated, simulated=row.simulated, losses={}) for name, row in good.items()
    }
    assert [target.met for target in throughput.emulation_targets(case, bad)] == [False, True]
