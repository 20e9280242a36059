"""What throughput is left when ranks are lost for good: every policy, against what survivors could do at best.

All figures are of a virtual clock: the plans that the policies make, run operation by operation in the order that
workers derive from them. Layers cost the same, messages and updates take no time, nothing is counted for the recovery
itself. So they say how good the plans are, and nothing of how fast any implementation is. Small grids are emulated,
too: the real pipeline in real processes, with messages that carry the virtual time.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elaswave.bench.result import (
    Metrics,
    Result,
    Spread,
    Target,
    at_least,
    at_most,
    paired_ratios,
    ratio_median,
    spread,
)
from elaswave.config import Schedule
from elaswave.errors import ConfigError
from elaswave.simulator.comparison import PAPER, Grid, Outcome, compare
from elaswave.simulator.pipeline import Machine

if TYPE_CHECKING:
    from elaswave.bench.emulated import Emulated

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


EMULATED = (
    Case(name="2x4", grid=Grid(replicas=2, stages=4, layers=24, micro_batches=24), lost=1),
    Case(name="2x6", grid=PAPER, lost=1),
)
"""What 8 and 12 workers do in real processes."""
MACHINE = Machine(message=0.1, update=1.0)
"""What messages and updates take there, in units of a layer's forward."""
DEVIATION_GOAL = 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=5, help="of lost ranks, for each grid but the largest (default 5)")
    parser.add_argument("--no-emulation", action="store_true", help="only what is simulated")
    parser.add_argument("--schedule", choices=[str(each) for each in Schedule], default=str(Schedule.SPLIT))


def run(arguments: argparse.Namespace) -> Result:
    """Simulate all cases, and emulate the small ones.

    Raises:
        BenchError: a process failed.
        ConfigError: an argument is wrong.
    """
    if arguments.draws < 1:
        raise ConfigError("--draws", arguments.draws, "give at least 1")
    schedule = Schedule(arguments.schedule)
    emulated = {} if arguments.no_emulation else {case: emulate_case(case, schedule) for case in EMULATED}
    found = {case: measure(case, arguments.draws, schedule) for case in CASES}
    ratios = {name: values for case, outcomes in found.items() for name, values in ratios_of(case, outcomes)}
    return Result(
        bench="throughput",
        config={
            "draws": arguments.draws,
            "seed": SEED,
            "schedule": str(schedule),
            "cases": {str(case): _described(case) for case in CASES},
            "emulated": {str(case): _described(case) for case in emulated},
            "emulated_message": MACHINE.message,
            "emulated_update": MACHINE.update,
        },
        contenders={
            f"{name}, {case}": _metrics(outcomes) for case, rows in found.items() for name, outcomes in rows.items()
        }
        | {
            f"{name}, {case}, emulated": {"step": spread([row.emulated]), "step_simulated": spread([row.simulated])}
            for case, rows in emulated.items()
            for name, row in rows.items()
        },
        ratios=ratios,
        targets=(
            *(target for case in CASES for target in targets_of(case, found[case][OURS], ratios)),
            *(target for case, rows in emulated.items() for target in emulation_targets(case, rows)),
        ),
        notes=(
            "simulated: the policies' own plans under a virtual clock; recoveries are not in it, see bench mttr",
            "share_of_bound: throughput over (N - k) / N of the full grid's under the same schedule; filled bubbles",
            "may carry it a little over 1. ReCycle has its split backward and staggered optimizer, Oobleck its memory",
            "limit. emulated: real processes, layers and messages, the time modelled, in units of a layer's forward",
            f"{LARGE_RANKS} ranks and more: one draw. 0: the policy cannot go on, and has no ratio",
        ),
    )


def measure(case: Case, draws: int, schedule: Schedule) -> dict[str, list[Outcome]]:
    """Policy -> what it does after each draw of lost ranks."""
    found: dict[str, list[Outcome]] = {}
    for draw in range(1 if case.grid.ranks >= LARGE_RANKS else draws):
        for name, outcome in compare(case.grid, lost_ranks(case, draw), schedule).items():
            found.setdefault(name, []).append(outcome)
    return found


def emulate_case(case: Case, schedule: Schedule) -> "dict[str, Emulated]":
    """Policy -> its step in real processes, after the first draw of lost ranks."""
    from elaswave.bench.emulated import emulate

    return emulate(case.grid, lost_ranks(case, 0), schedule, MACHINE)


def emulation_targets(case: Case, rows: "Mapping[str, Emulated]") -> Iterator[Target]:
    """The pipeline takes as long as the simulator says, and all policies find the same losses."""
    worst = max(abs(row.emulated / row.simulated - 1) for row in rows.values())
    yield at_most(f"emulated beside simulated, {case}, all policies, deviation", worst, DEVIATION_GOAL)
    distinct = len({tuple(sorted(row.losses.items())) for row in rows.values()})
    yield at_most(f"different losses among policies, {case}", distinct, 1)


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
