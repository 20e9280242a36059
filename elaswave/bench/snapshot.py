"""What it costs per step to keep copies of the optimizer state on neighbours: both modes, one copy and two.

Five jobs of the same model and data are alive at once, each with its own workers, and take turns of a few steps; while
one computes, the workers of the others are blocked and cost nothing. So each block with copies has one without
beside it, under the same load.
"""

import argparse
import importlib
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from elaswave.bench.forked import Rank, run_ranks
from elaswave.bench.local_node import local_node
from elaswave.bench.result import Metrics, Result, Spread, Target, at_most, paired_ratios, ratio_median, spread
from elaswave.config import Config, SnapshotMode, from_mapping, load
from elaswave.coordination.timeouts import Timeouts
from elaswave.data.dataset import build_dataset
from elaswave.errors import BenchError, ConfigError
from elaswave.models.build import build_model
from elaswave.runtime.build import optimizer_maker
from elaswave.runtime.job import Job, join

NONE = "no copies"
COPIES = (1, 2)
GOAL = 1.02
WARM_UP_STEPS = 1
BLOCK_TIMEOUT_S = 60.0
START_TIMEOUT_S = 120.0
STEPS_MAX = 1_000_000

Lap = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="worker processes of each job (default 4)")
    parser.add_argument("--repetitions", type=int, default=25, help="blocks of every job, in turns (default 25)")
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


def measure(
    jobs: Mapping[str, Config], workers: int, steps: int, repetitions: int
) -> dict[str, dict[str, list[float]]]:
    """Contender -> metric -> one value per block: the slowest worker's time, the mean worker's CPU and bytes."""
    importlib.import_module("torch._dynamo")  # the first optimizer needs it, and it takes seconds; forks share it
    names = list(jobs)
    timeout_s = START_TIMEOUT_S + repetitions * len(names) * BLOCK_TIMEOUT_S
    with ExitStack() as nodes:
        environments = [nodes.enter_context(_node(name, config, workers)) for name, config in jobs.items()]

        def body(me: Rank) -> list[Lap]:
            turn = me.rank // workers
            os.environ.update(environments[turn])
            return _train(me, jobs[names[turn]], turn, len(names), steps, repetitions)

        ranks = run_ranks(workers * len(names), body, timeout_s)
    return {name: _collect(ranks[n * workers : (n + 1) * workers]) for n, name in enumerate(names)}


def _node(name: str, config: Config, workers: int) -> Any:
    run_id = "bench-snapshot-" + "".join(letter if letter.isalnum() else "-" for letter in name)
    return local_node(run_id, workers, Timeouts.from_settings(config.elasticity))


def _train(me: Rank, config: Config, turn: int, turns: int, steps: int, repetitions: int) -> list[Lap]:
    """One worker of one job: computes blocks of steps when it is this job's turn."""
    laps: list[Lap] = []
    job = join(config)
    model = job.pipeline(build_model(config.model, config.training.seed), build_dataset(config))
    optimizer = job.shard(optimizer_maker(config.optimizer), model)
    attempts = job.attempts()

    def block(count: int) -> None:
        goal = job.step + count
        while job.step < goal:
            with next(attempts) as attempt:
                model.forward_backward(attempt.micro_batches)
                optimizer.step()

    block(1)
    for repetition in range(repetitions):
        for number in random.Random(repetition).sample(range(turns), turns):
            if number != turn:
                me.meet()
                me.meet()
                continue
            me.meet()
            block(WARM_UP_STEPS)  # caches hold the other job's memory
            start, cpu_s = time.monotonic(), time.process_time()
            block(steps)
            cpu_s = time.process_time() - cpu_s
            laps.append({"start": start, "end": time.monotonic(), "cpu_s": cpu_s, "bytes": _bytes_sent(job)})
            me.meet()
    # the job stays open: a node ends workers that have hung up, and this one still has to hand over its laps
    return [{**lap, "steps": float(steps)} for lap in laps]


def _bytes_sent(job: Job) -> float:
    """Payload that this worker sends per step to those who keep a copy of its shard."""
    held, settings = job.holding, job.config.snapshot
    payload = held.optimizer.state().raw if settings.mode is SnapshotMode.STATE else held.optimizer.gradient
    return float(payload.nbytes * min(settings.copies, held.layout.num_shards - 1))


def _collect(workers: Sequence[Sequence[Lap]]) -> dict[str, list[float]]:
    blocks = list(zip(*workers, strict=True))
    if not blocks:
        raise BenchError("no block was measured")
    return {
        "step_ms": [1e3 * max((lap["end"] - lap["start"]) / lap["steps"] for lap in block) for block in blocks],
        "cpu_per_worker_ms": [1e3 * sum(lap["cpu_s"] / lap["steps"] for lap in block) / len(block) for block in blocks],
        "sent_per_worker_mib": [sum(lap["bytes"] for lap in block) / len(block) / 2**20 for block in blocks],
    }


def summary(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Metrics]:
    return {name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in measured.items()}


def targets_of(ratios: Mapping[str, Spread]) -> list[Target]:
    return [at_most(name, ratio_median(ratios, name), GOAL) for name in ratios if name.endswith("step_ms")]
