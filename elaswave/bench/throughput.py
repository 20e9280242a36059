"""What throughput is left when ranks are lost for good: every policy, against what survivors could do at best.

All figures are of a virtual clock: the plans that the policies make, run operation by operation in the order that
workers derive from them. Layers cost the same, messages and updates take no time, nothing is counted for the recovery
itself. So they say how good the plans are, and nothing of how fast any implementation is.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elaswave.bench.result import Metrics, Result, Spread, Target, at_least, paired_ratios, ratio_median, spread
from elaswave.config import Schedule
from elaswave.errors import ConfigError
from elaswave.simulator.comparison import PAPER, Grid, Outcome, compare

SEED = 0
OURS = "elaswave"
RIVALS = ("oobleck", "recycle", "restart", "torchft")
BOUND_GOAL, PAPER_BOUND_GOAL = 0.95, 0.97
PAPER_GOALS = {"torchft": 1.7, "recycle": 1.5}
"""At the paper's grid: throughput over that of a rival."""
LARGE_RANKS = 1000
"""Grids from here on are simulated for a single draw of lost ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A grid and how many of its ranks are lost."""

    name: str
    grid: Grid
    lost: int

    def __str__(self) -> str:
        return f"{self.name}, {self.lost} lost"


CASES = (
    Case(name="2x6", grid=PAPER, lost=1),
    Case(name="4x4", grid=Grid(replicas=4, stages=4, layers=24, micro_batches=64), lost=1),
    Case(name="4x4", grid=Grid(replicas=4, stages=4, layers=24, micro_batches=64), lost=2),
    Case(name="8x12", grid=Grid(replicas=8, stages=12, layers=48, micro_batches=256), lost=4),
    Case(name="12x8", grid=Grid(replicas=12, stages=8, layers=48, micro_batches=384), lost=4),
    Case(name="640x16", grid=Grid(replicas=640, stages=16, layers=80, micro_batches=5120), lost=100),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=5, help="of lost ranks, for each grid but the largest (default 5)")
    parser.add_argument("--schedule", choices=[str(each) for each in Schedule], default=str(Schedule.SPLIT))


def run(arguments: argparse.Namespace) -> Result:
    """Simulate all cases.

    Raises:
        ConfigError: an argument is wrong.
    """
    if arguments.draws < 1:
        raise ConfigError("--draws", arguments.draws, "give at least 1")
    schedule = Schedule(arguments.schedule)
    found = {case: measure(case, arguments.draws, schedule) for case in CASES}
    ratios = {name: values for case, outcomes in found.items() for name, values in ratios_of(case, outcomes)}
    return Result(
        bench="throughput",
        config={
            "draws": arguments.draws,
            "seed": SEED,
            "schedule": str(schedule),
            "cases": {str(case): _described(case) for case in CASES},
        },
        contenders={
            f"{name}, {case}": _metrics(outcomes) for case, rows in found.items() for name, outcomes in rows.items()
        },
        ratios=ratios,
        targets=tuple(target for case in CASES for target in targets_of(case, found[case][OURS], ratios)),
        notes=(
            "simulated: the policies' own plans under a virtual clock; recoveries are not in it, see bench mttr",
            "share_of_bound: throughput over (N - k) / N of the full grid's under the same schedule; filled bubbles",
            "may carry it a little over 1. ReCycle has its split backward and staggered optimizer, Oobleck its memory",
            f"limit. {LARGE_RANKS} ranks and more: one draw. 0: the policy cannot go on, and has no ratio",
        ),
    )


def measure(case: Case, draws: int, schedule: Schedule) -> dict[str, list[Outcome]]:
    """Policy -> what it does after each draw of lost ranks."""
    found: dict[str, list[Outcome]] = {}
    for draw in range(1 if case.grid.ranks >= LARGE_RANKS else draws):
        for name, outcome in compare(case.grid, lost_ranks(case, draw), schedule).items():
            found.setdefault(name, []).append(outcome)
    return found


def lost_ranks(case: Case, draw: int) -> tuple[int, ...]:
    """Who is lost, ascending; drawn without regard to stages and replicas."""
    chance = np.random.default_rng([SEED, draw])
    return tuple(sorted(chance.choice(case.grid.ranks, case.lost, replace=False).tolist()))


def ratios_of(case: Case, outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[tuple[str, Spread]]:
    """Our throughput over that of each rival that can go on, draw by draw."""
    ours = [outcome.throughput for outcome in outcomes[OURS]]
    for rival in RIVALS:
        each = paired_ratios(ours, [outcome.throughput for outcome in outcomes[rival]])
        if each:
            yield _ratio(rival, case), spread(each)


def targets_of(case: Case, ours: Sequence[Outcome], ratios: Mapping[str, Spread]) -> Iterator[Target]:
    """What is promised of one case: near the bound in every draw, and no rival ahead in any."""
    paper = case.grid == PAPER
    goal = PAPER_BOUND_GOAL if paper else BOUND_GOAL
    yield at_least(f"share of the bound, {case}", min(outcome.of_bound for outcome in ours), goal)
    for rival in RIVALS:
        found = ratios.get(_ratio(rival, case))
        if paper and rival in PAPER_GOALS:
            yield at_least(_ratio(rival, case), ratio_median(ratios, _ratio(rival, case)), PAPER_GOALS[rival])
        elif found is not None:
            yield at_least(f"{_ratio(rival, case)}, worst draw", found.min, 1.0)


def _ratio(rival: str, case: Case) -> str:
    return f"{OURS} / {rival}, {case}"


def _metrics(outcomes: Sequence[Outcome]) -> Metrics:
    return {
        "share_of_bound": spread([outcome.of_bound for outcome in outcomes]),
        "share_of_healthy": spread([outcome.of_healthy for outcome in outcomes]),
    }


def _described(case: Case) -> dict[str, int]:
    grid = case.grid
    return {
        "replicas": grid.replicas,
        "stages": grid.stages,
        "layers": grid.layers,
        "micro_batches": grid.micro_batches,
        "lost": case.lost,
    }
