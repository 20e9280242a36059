"""How long a plan takes for very many workers, and how evenly it shares out the work when 1 % of them are dead.

A plan is whole: members of the stages, exact cuts and fluid ones, what the busiest member of each stage has to do,
buckets, and a clock for each stage. It begins with a boolean per rank and ends with arrays, from which every worker
looks up its own part; views and messages are not in it.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elaswave.bench.result import Metrics, Result, Spread, Target, at_least, at_most, paired_ratios, spread
from elaswave.config import Config, from_mapping
from elaswave.errors import ConfigError
from elaswave.planner.frequency import ClockProfile
from elaswave.planner.graph import cut
from elaswave.planner.profile import Profile
from elaswave.planner.scale import Dvfs, ScalePlan, bound, drop_replicas, fluid_cuts, loads_of, plan_at_scale
from elaswave.planner.scheduler import make_plan
from elaswave.topology import Member, View

SEED = 0
COST_SPREAD = 0.1
"""Costs of layers differ by so much in both directions."""
CLOCKS = Dvfs(range_mhz=tuple(range(500, 1201, 10)), profile=ClockProfile(nominal_mhz=1000))
GOALS_MS = {100_000: 10.0, 1_000_000: 50.0}
BALANCE_GOAL = 0.95
WHOLE, FLUID, DROP = "whole cuts", "fluid cuts", "drop replicas"
OBJECTS_MAX = 96
"""Workers up to which `make_plan`, with an object for every leg, is measured too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A job, and how many of its workers are dead.

    Attributes:
        layers: of the model.
        per_pipeline: micro-batches per step and pipeline.
    """

    ranks: int
    stages: int
    layers: int
    per_pipeline: int
    dead: int

    @property
    def num_micro_batches(self) -> int:
        return self.ranks // self.stages * self.per_pipeline

    def __str__(self) -> str:
        return f"{self.ranks} workers, {self.stages} stages"


GRIDS = (
    Grid(ranks=96, stages=8, layers=48, per_pipeline=96, dead=4),
    Grid(ranks=10_000, stages=16, layers=80, per_pipeline=32, dead=100),
    Grid(ranks=100_000, stages=32, layers=96, per_pipeline=64, dead=1000),
    Grid(ranks=1_000_000, stages=64, layers=128, per_pipeline=128, dead=10_000),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=25, help="plans of every grid, in turns (default 25)")


def run(arguments: argparse.Namespace) -> Result:
    """Measure all grids.

    Raises:
        ConfigError: an argument is wrong.
    """
    if arguments.repetitions < 1:
        raise ConfigError("--repetitions", arguments.repetitions, "give at least 1")
    times = measure(arguments.repetitions)
    balances = {str(grid): balance(grid) for grid in GRIDS}
    contenders: dict[str, Metrics] = {
        name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in times.items()
    }
    for name, shares in balances.items():
        contenders[name] |= {f"share_of_bound, {policy}": spread([share]) for policy, share in shares.items()}
    return Result(
        bench="planner",
        config={
            "repetitions": arguments.repetitions,
            "grids": {str(grid): _described(grid) for grid in GRIDS},
            "cost_spread": COST_SPREAD,
            "seed": SEED,
        },
        contenders=contenders,
        ratios=_ratios(balances),
        targets=tuple(targets_of(contenders)),
        notes=(
            "plan_ms: members, whole and fluid cuts, loads, buckets, clocks; from a boolean per rank to arrays",
            f"make_plan_ms: the plan that jobs carry out, an object for each leg, up to {OBJECTS_MAX} workers",
            "_ms is wall time, which grows with what else the machine does; _cpu_ms is what the one thread computed",
            "share_of_bound: work per live worker over that of the busiest one; filling the pipeline not counted",
        ),
    )


def measure(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Grid -> metric -> milliseconds, one value per repetition."""
    jobs = {str(grid): _calls(grid) for grid in GRIDS}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in jobs}
    for repetition in range(-1, repetitions):  # the first one is not counted: modules and caches are cold
        for name, calls in jobs.items():
            for what, call in calls.items():
                wall_s, cpu_s = _lap(call)
                if repetition >= 0:
                    found[name].setdefault(f"{what}_ms", []).append(1e3 * wall_s)
                    found[name].setdefault(f"{what}_cpu_ms", []).append(1e3 * cpu_s)
    return found


def balance(grid: Grid) -> dict[str, float]:
    """Policy -> work per live worker over that of the busiest one."""
    alive, profile, micro_batches = alive_of(grid), profile_of(grid), grid.num_micro_batches
    ideal = bound(profile.costs, int(alive.sum()), micro_batches)
    counts = np.array([alive[stage :: grid.stages].sum() for stage in range(grid.stages)], np.int64)
    whole = plan_at_scale(alive, grid.stages, profile, micro_batches, use_fluid=False)
    fluid = loads_of(fluid_cuts(profile.costs, counts.tolist(), micro_batches), profile.costs, counts)
    busiest = {
        WHOLE: float(whole.loads.max()),
        FLUID: float(fluid.max()),
        DROP: drop_replicas(alive, grid.stages, profile.costs, micro_batches),
    }
    return {policy: ideal / most for policy, most in busiest.items()}


def alive_of(grid: Grid) -> np.ndarray:
    """(ranks,) bool; who is dead is drawn without regard to stages."""
    alive = np.ones(grid.ranks, bool)
    alive[np.random.default_rng(SEED).choice(grid.ranks, grid.dead, replace=False)] = False
    return alive


def profile_of(grid: Grid) -> Profile:
    """Layers of about equal costs, with a weight that the first and the last one share."""
    costs = np.random.default_rng(SEED + 1).uniform(1 - COST_SPREAD, 1 + COST_SPREAD, grid.layers)
    users = (*((layer,) for layer in range(grid.layers)), (0, grid.layers - 1))
    return Profile(costs=tuple(costs.tolist()), unit_elements=(1,) * len(users), users=users)


def targets_of(contenders: Mapping[str, Metrics]) -> list[Target]:
    found = []
    for grid in GRIDS:
        metrics = contenders[str(grid)]
        if grid.ranks in GOALS_MS:
            found.append(at_most(f"whole plan, {grid}, ms", metrics["plan_ms"].median, GOALS_MS[grid.ranks]))
        chosen = max(metrics[f"share_of_bound, {policy}"].median for policy in (WHOLE, FLUID))
        found.append(at_least(f"share of the bound, {grid}", chosen, BALANCE_GOAL))
    return found


def _calls(grid: Grid) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    alive, profile, micro_batches = alive_of(grid), profile_of(grid), grid.num_micro_batches
    counts = [int(alive[stage :: grid.stages].sum()) for stage in range(grid.stages)]

    def whole_plan() -> ScalePlan:
        return plan_at_scale(alive, grid.stages, profile, micro_batches, dvfs=CLOCKS)

    calls: dict[str, Callable[[], object]] = {
        "plan": whole_plan,
        "exact_cut": lambda: cut(profile.costs, counts),
        "fluid_cut": lambda: fluid_cuts(profile.costs, counts, micro_batches),
        "legs_of_a_micro_batch": _lookup(whole_plan()),
    }
    if grid.ranks <= OBJECTS_MAX:
        config, view = _config(grid), _view(alive)
        calls["make_plan"] = lambda: make_plan(config, None, view, profile)
    return calls


def _lookup(plan: ScalePlan) -> Callable[[], object]:
    return lambda: plan.legs(plan.cuts.num_micro_batches * 2 // 3)


def _lap(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    start, cpu_s = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu_s


def _config(grid: Grid) -> Config:
    return from_mapping(
        {
            "training": {"train_batch_size": grid.num_micro_batches, "micro_batch_size": 1},
            "parallelism": {"stages": grid.stages, "schedule": "1f1b-split"},
        }
    )


def _view(alive: np.ndarray) -> View:
    ranks: Sequence[int] = np.flatnonzero(alive).tolist()
    members = tuple(Member(rank=rank, worker_id=f"{rank:012x}", node_id="", host_id="", pid=0) for rank in ranks)
    return View(epoch=1, members=members, reason="")


def _ratios(balances: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    return {
        f"{FLUID} / {other}, {name}": spread(paired_ratios([shares[FLUID]], [shares[other]]))
        for name, shares in balances.items()
        for other in (WHOLE, DROP)
        if shares[other] > 0
    }


def _described(grid: Grid) -> dict[str, int]:
    return {
        "ranks": grid.ranks,
        "stages": grid.stages,
        "layers": grid.layers,
        "micro_batches": grid.num_micro_batches,
        "dead": grid.dead,
    }
