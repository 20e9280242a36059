"""What it costs per step to keep copies of the optimizer state on neighbours: both modes, one copy and two.

Five jobs of the same model and data, without copies and with, take turns of a few steps.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from elaswave.bench.own_job import OwnTrainer, own_service
from elaswave.bench.result import Result, Spread, Target, at_most, paired_ratios, ratio_median, spread
from elaswave.bench.turns import Contender, Measured, summary, take_turns
from elaswave.config import Config, SnapshotMode, from_mapping, load
from elaswave.errors import ConfigError

NONE = "no copies"
COPIES = (1, 2)
GOAL = 1.02
STEPS_MAX = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="worker processes of each job (default 4)")
    parser.add_argument("--repetitions", type=int, default=60, help="blocks of every job, in turns (default 60)")
    parser.add_argument("--steps", type=int, default=4, help="steps per block (default 4)")
    parser.add_argument("--config", metavar="FILE", help="what to train (default: a GPT of 4 layers of width 128)")


def run(arguments: argparse.Namespace) -> Result:
    """Measure what was asked for; call it before this process has threads.

    Raises:
        ConfigError: an argument is wrong.
        BenchError: a job failed.
    """
    if arguments.workers < 3:
        raise ConfigError("--workers", arguments.workers, "give at least 3: two neighbours hold copies")
    base = load(arguments.config) if arguments.config else from_mapping({})
    jobs = contenders(base)
    measured = measure(jobs, arguments.workers, arguments.steps, arguments.repetitions)
    ratios = {
        f"{name} / {NONE}, {metric}": spread(paired_ratios(metrics[metric], measured[NONE][metric]))
        for name, metrics in measured.items()
        for metric in ("step_ms", "cpu_per_worker_ms")
        if name != NONE
    }
    return Result(
        bench="snapshot",
        config={
            "workers": arguments.workers,
            "repetitions": arguments.repetitions,
            "steps_per_block": arguments.steps,
            "training": base.training.model_dump(mode="json"),
            "model": base.model.model_dump(mode="json"),
        },
        contenders=summary(measured),
        ratios=ratios,
        targets=tuple(targets_of(ratios)),
        notes=("sent_per_worker_mib: payload of the copies that one worker sends per step",),
    )


def contenders(base: Config) -> dict[str, Config]:
    """A config per job: without copies, and with one or two in both modes."""
    found = {NONE: with_snapshot(base, copies=0)}
    for mode in SnapshotMode:
        for copies in COPIES:
            plural = "copy" if copies == 1 else "copies"
            found[f"{mode}, {copies} {plural}"] = with_snapshot(base, copies=copies, mode=str(mode))
    return found


def with_snapshot(base: Config, **settings: Any) -> Config:
    """`base` with these settings of `[snapshot]`, and no end of its own."""
    values = base.model_dump(mode="json")
    values["snapshot"] |= settings
    values["training"]["steps"] = STEPS_MAX
    values["elasticity"]["spares"] = 0
    return from_mapping(values)


class _Sender(OwnTrainer):
    """A worker that tells how much it sends to those who keep a copy of its shard."""

    def figures(self) -> dict[str, float | None]:
        held, settings = self.job.holding, self.job.config.snapshot
        payload = held.optimizer.state().raw if settings.mode is SnapshotMode.STATE else held.optimizer.gradient
        return {"sent_per_worker_mib": payload.nbytes * min(settings.copies, held.layout.num_shards - 1) / 2**20}


def measure(jobs: Mapping[str, Config], workers: int, steps: int, repetitions: int) -> Measured:
    """Contender -> metric -> one value per block."""
    contenders = {
        name: Contender(
            service=partial(own_service, f"snapshot-{name}", config, workers),
            start=lambda worker, config=config: _Sender(config),
        )
        for name, config in jobs.items()
    }
    return take_turns(contenders, workers=workers, steps=steps, repetitions=repetitions)


def targets_of(ratios: Mapping[str, Spread]) -> list[Target]:
    return [at_most(name, ratio_median(ratios, name), GOAL) for name in ratios if name.endswith("step_ms")]
