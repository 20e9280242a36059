"""A job among failures: the same for the same seed, and what it loses is what failures cost."""

import dataclasses

import numpy as np
import pytest

from elaswave.config import Schedule
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import ConfigError
from elaswave.simulator.comparison import Grid
from elaswave.simulator.failures import HOUR_S, Cluster, Failure, Kind, failures
from elaswave.simulator.goodput import Job, live, moments
from elaswave.simulator.workload import Workload
from elaswave.simulator.world import World, detected_s

GRID = Grid(replicas=8, stages=4, layers=16, micro_batches=256)
CLUSTER = Cluster(ranks=32, per_node=4, nodes_per_rack=2, mtbf_h=100.0, rack_mtbf_h=500.0, slow_mtbf_h=200.0)
WORK = Workload(profile=GRID.profile(), stages=4, micro_batches=256, schedule=Schedule.SPLIT)
JOB = Job(work=WORK, step_s=10.0)
DAY_S = 24 * HOUR_S


def one(kind: Kind, first: int = 5, last: int = 5, lasts_s: float = 1e9) -> tuple[Failure, ...]:
    return (Failure(at_s=DAY_S / 2, kind=kind, ranks=range(first, last + 1), lasts_s=lasts_s),)


def lived(happenings: tuple[Failure, ...], **changes: float):
    return live(dataclasses.replace(CLUSTER, **changes), JOB, happenings, 24, Timeouts())


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_is_the_same_run_again(seed: int) -> None:
    runs = [lived(failures(CLUSTER, 24, np.random.default_rng(seed))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != lived(failures(CLUSTER, 24, np.random.default_rng(seed + 100)))
    for account in runs[0].values():
        assert 0 < account.done_s < DAY_S
        assert account.losses > 0


def test_rates_are_what_was_asked_for() -> None:
    found = failures(CLUSTER, 10_000, np.random.default_rng(1))
    counts = {kind: sum(failure.kind is kind for failure in found) for kind in Kind}
    assert counts[Kind.DOWN] + counts[Kind.HANGS] == pytest.approx(32 * 10_000 / 100, rel=0.1)
    assert counts[Kind.HANGS] / (counts[Kind.DOWN] + counts[Kind.HANGS]) == pytest.approx(0.1, rel=0.3)
    assert counts[Kind.RACK_DOWN] == pytest.approx(4 * 10_000 / 500, rel=0.4)
    assert [failure.at_s for failure in found] == sorted(failure.at_s for failure in found)


def test_without_failures_nothing_is_lost() -> None:
    accounts = lived(())
    assert accounts["elaswave"].done_s == pytest.approx(DAY_S)
    assert accounts["torchft"].done_s == pytest.approx(DAY_S)
    assert all(account.again_s == account.stopped_s == account.losses == 0 for account in accounts.values())


def test_a_loss_costs_a_survivor_little_and_a_restart_what_was_since_the_checkpoint() -> None:
    accounts = lived(one(Kind.DOWN))
    assert accounts["elaswave"].again_s < accounts["torchft"].again_s == 5.0
    assert accounts["elaswave"].stopped_s == 1.0
    assert accounts["restart"].fallbacks == 1
    assert accounts["restart"].stopped_s == 300.0
    order = sorted(accounts, key=lambda name: -accounts[name].done_s)
    assert order[0] == "elaswave"
    assert order[-1] == "restart"
    half, left = DAY_S / 2, 31 / 32
    assert accounts["elaswave"].done_s == pytest.approx(half + left * half, rel=0.03)
    assert accounts["torchft"].done_s == pytest.approx(half + 0.86 * half, rel=0.03)


def test_a_silent_worker_is_found_by_its_lease_and_a_dark_rack_by_its_connections() -> None:
    timeouts = Timeouts(heartbeat_s=0.5, suspicion_s=4.0)
    assert detected_s(Kind.DOWN, timeouts) == 0.0
    assert detected_s(Kind.HANGS, timeouts) == 8.0
    assert detected_s(Kind.RACK_DOWN, timeouts) == 1.0


def test_a_rack_that_holds_all_copies_takes_the_job_back_to_a_checkpoint() -> None:
    small, large = lived(one(Kind.RACK_DOWN, 0, 7)), lived(one(Kind.RACK_DOWN, 0, 15), nodes_per_rack=4)
    assert small["elaswave"].fallbacks == 0
    assert large["elaswave"].fallbacks == 1
    assert large["elaswave"].stopped_s > 300


def test_a_slow_worker_is_left_out_by_us_and_delays_everyone_else() -> None:
    accounts = lived(one(Kind.SLOW), slowdown=2.0)
    assert accounts["elaswave"].done_s > 0.97 * DAY_S
    assert accounts["recycle"].done_s < 0.8 * DAY_S
    assert accounts["torchft"].losses == 0


def test_a_worker_that_comes_back_takes_its_rank_again() -> None:
    happenings = one(Kind.DOWN, lasts_s=HOUR_S)
    lost, back = moments(CLUSTER, JOB, happenings, 24, Timeouts())
    assert (int(lost.alive.sum()), int(back.alive.sum())) == (31, 32)
    assert back.at_s == DAY_S / 2 + HOUR_S
    accounts = lived(happenings)
    assert accounts["elaswave"].done_s > accounts["restart"].done_s  # which waits for the next loss to take it in


def test_views_are_those_of_the_membership() -> None:
    world = World(CLUSTER, 1, Timeouts())
    assert world.view.ranks() == tuple(range(32))
    assert world.lose([3, 17], Kind.DOWN, 1.0).reason == "lost rank 3; lost rank 17"
    assert world.join([17], 2.0).reason == "joined rank 17"
    assert world.view.epoch == 3
    assert world.view.ranks() == tuple(rank for rank in range(32) if rank != 3)


@pytest.mark.parametrize(("name", "value"), [("ranks", 0), ("hang_share", 1.5), ("slowdown", 0.5), ("mtbf_h", -1.0)])
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} = {value}"):
        dataclasses.replace(CLUSTER, **{name: value})
