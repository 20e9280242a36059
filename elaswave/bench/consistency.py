"""Whether wounded runs have the bits of one worker that nobody harmed, and how far rival behaviours come to lie off.

Every run is a job of real processes on one of five grids, with a schedule of kills, hangs, leaves and joins drawn from
its seed; each of its steps is compared with the run of one worker. Model, precision, pipeline schedule, layout and
kind of copies vary from run to run. The deviation of rivals is computed on what the same faults left of the workers.
"""

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from elaswave.bench.campaign import GRIDS, Case, Played, case_of, play, reference_config, reference_of
from elaswave.bench.deviation import Behaviour, deviation
from elaswave.bench.miniature import warm_process
from elaswave.bench.result import Metrics, Result, Target, at_least, at_most, spread
from elaswave.bench.zygote import Zygote
from elaswave.config import Precision
from elaswave.errors import ConfigError
from elaswave.report.facts import History

ELASWAVE = "elaswave"
RUNS, FAULTS, IN_RECOVERY = 20, 200, 30
FAULTS_PER_RUN = 12
"""That a schedule asks for; some find nobody at the point they are for."""
MORE_RUNS = 2
"""As many times the runs that were asked for are done at most, until there have been enough faults."""
DEVIATION_RUNS = 4
COUNTS = ("kills", "hangs", "in_recovery", "leaves", "joins", "unplanned")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs at least (default {RUNS})")
    parser.add_argument("--seed", type=int, default=1, help="of the first run, the next has the next (default 1)")
    parser.add_argument(
        "--faults", type=int, default=FAULTS, help=f"more runs until so many workers were hurt (default {FAULTS})"
    )


def run(arguments: argparse.Namespace) -> Result:
    """Carry the campaign out; a run that fails is counted, told with its seed, and stops nothing.

    Raises:
        ConfigError: an argument is wrong.
        BenchError: one unharmed worker did not even train.
    """
    if arguments.runs < 1:
        raise ConfigError("--runs", arguments.runs, "give at least 1")
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("bench", "consistency", "some runs train on scikit-learn's digits: pip install -e .[bench]")
    folder = Path(tempfile.mkdtemp(prefix="elaswave-consistency-"))
    played = campaign(folder, arguments.seed, arguments.runs, arguments.faults)
    if not any(one.failure for one in played):
        shutil.rmtree(folder, ignore_errors=True)
    contenders = {ELASWAVE: totals(played), **by_grid(played), **deviations(played)}
    return Result(
        bench="consistency",
        config={
            "seed": arguments.seed,
            "runs": len(played),
            "steps_per_run": played[0].case.config.training.steps,
            "cases": {str(one.case.seed): str(one.case) for one in played},
            "points": points_of(played),
        },
        contenders=contenders,
        targets=tuple(targets_of(contenders)),
        notes=tuple(story(one) for one in played if one.failure),
    )


def campaign(folder: Path, seed: int, runs: int, faults: int) -> list[Played]:
    """Runs of seeds in a row, until there are enough of them and of faults."""
    zygote = warm_process()
    references: dict[object, History] = {}
    played: list[Played] = []
    try:
        while len(played) < runs or (
            sum(one.tally.faults for one in played) < faults and len(played) < MORE_RUNS * runs
        ):
            case = case_of(seed + len(played), faults=FAULTS_PER_RUN)
            played.append(
                play(zygote, folder / f"seed-{case.seed}", case, _reference(zygote, folder, case, references))
            )
            sys.stderr.write(f"{line(played[-1])}\n")
    finally:
        zygote.close()
    return played


def _reference(zygote: Zygote, folder: Path, case: Case, known: dict[object, History]) -> History:
    if case.identity not in known:
        known[case.identity] = reference_of(zygote, folder / f"one-{len(known)}", case)
    return known[case.identity]


def line(one: Played) -> str:
    """A run in one line."""
    tally = one.tally
    return (
        f"seed {one.case.seed} ({one.case}): {tally.kills} kills, {tally.hangs} hangs, {tally.in_recovery} of them in "
        f"recoveries, {tally.leaves} leaves, {tally.joins} joins, "
        + (f"FAILED: {one.failure.splitlines()[0]}" if one.failure else "equal")
    )


def story(one: Played) -> str:
    """What is to be known about a run that failed."""
    again = f"elaswave bench consistency --runs 1 --faults 0 --seed {one.case.seed}"
    return f"{line(one)}\nagain: {again}\nevents and logs: {one.folder}\n{one.failure}"


def points_of(played: Iterable[Played]) -> dict[str, int]:
    """How often workers were hurt at each point."""
    found: dict[str, int] = {}
    for one in played:
        for (what, point), times in one.tally.points.items():
            found[f"{what} at {point}"] = found.get(f"{what} at {point}", 0) + times
    return dict(sorted(found.items()))


def totals(played: Sequence[Played]) -> Metrics:
    """Sums over all runs, and what became of the losses."""
    sums = {name: sum(getattr(one.tally, name) for one in played) for name in ("faults", *COUNTS)}
    sums |= {"failed_runs": sum(bool(one.failure) for one in played)}
    sums |= {"mismatches": sum(one.mismatches for one in played)}
    return {name: spread([value]) for name, value in sums.items()} | {
        "loss_deviation": spread([one.loss_deviation for one in played])
    }


def by_grid(played: Sequence[Played]) -> dict[str, Metrics]:
    """Per grid the spread over its runs."""
    found = {}
    for grid in GRIDS:
        mine = [one for one in played if one.case.grid == grid]
        if mine:
            metrics = {name: spread([getattr(one.tally, name) for one in mine]) for name in COUNTS}
            metrics["mismatches"] = spread([one.mismatches for one in mine])
            found[f"grid {grid}"] = metrics
    return found


def deviations(played: Sequence[Played]) -> dict[str, Metrics]:
    """What rival behaviours make of the same changes of the number of replicas."""
    usable = [one for one in played if comparable(one)][:DEVIATION_RUNS]
    return {
        str(behaviour): {
            "loss_deviation": spread(
                [
                    deviation(behaviour, reference_config(one.case), one.replicas, one.case.grid.replicas)
                    for one in usable
                ]
            )
        }
        for behaviour in Behaviour
        if usable
    }


def comparable(one: Played) -> bool:
    """Runs in float32 of several replicas of which some were lost, and which ended."""
    full = one.case.grid.replicas
    wounded = any(count < full for count in one.replicas.values())
    return not one.failure and full > 1 and wounded and one.case.config.training.precision is Precision.FP32


def targets_of(contenders: dict[str, Metrics]) -> list[Target]:
    ours = contenders[ELASWAVE]
    return [
        at_most("steps that are not those of one worker", ours["mismatches"].median, 0),
        at_most("runs that failed", ours["failed_runs"].median, 0),
        at_least("workers killed or hung", ours["faults"].median, FAULTS),
        at_least("of these during a recovery", ours["in_recovery"].median, IN_RECOVERY),
        at_most("elaswave: mean |loss - loss of the unharmed run|", ours["loss_deviation"].max, 0),
    ]
