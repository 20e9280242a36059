"""A layer changes its stage: how long training stands still, blocking or not, with contiguous or interleaved ZeRO.

Two jobs of the same model and data are alive at once, one for each way to cut the optimizer state; while one computes,
the workers of the other are blocked and cost nothing. Nobody is lost: between two steps all members are told other
costs of the layers, so that the planner shifts the boundary between two stages by one layer, and later back. All else
is what the runtime does after a loss as well, but that nobody looks for damage: the next vote proves the whole state.

Workers here outnumber cores, while those of a real job compute on devices of their own and leave their processors
idle. So layers are paced: each takes a fixed time at least, most of which its worker sleeps.
"""

import argparse
import importlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from statistics import median
from typing import Any

from elaswave.bench.forked import Rank, run_ranks
from elaswave.bench.local_node import local_node
from elaswave.bench.paced import Blocks, Vectors
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
from elaswave.config import Config, ZeroLayout, from_mapping
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import BenchError, ConfigError
from elaswave.events import Stage
from elaswave.runtime.boundary import replan
from elaswave.runtime.build import optimizer_maker
from elaswave.runtime.job import Job, join
from elaswave.snapshot.verify import combine

STAGES = 2
BLOCKING, BACKGROUND = "blocking", "non-blocking"
CONTENDERS = tuple(f"{kind}, {mode}" for kind in ZeroLayout for mode in (BLOCKING, BACKGROUND))
BASELINE = f"{ZeroLayout.CONTIGUOUS}, {BLOCKING}"
BEST = f"{ZeroLayout.INTERLEAVED}, {BACKGROUND}"
SEQUENCE_LENGTH = 8
WARM_UP_STEPS = 1
SETTLED_STEPS = 3
START_TIMEOUT_S = 180.0
VISIT_TIMEOUT_S = 300.0
STEPS_MAX = 1_000_000
GOAL = 0.8

Move = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=8, help="of each job, half of them per stage (default 8)")
    parser.add_argument("--layers", type=int, default=16, help="of the model, half of them per stage (default 16)")
    parser.add_argument("--width", type=int, default=256, help="a layer has 12 * width^2 parameters (default 256)")
    parser.add_argument("--layer-ms", type=float, default=15.0, help="least time of a layer's forward (default 15)")
    parser.add_argument("--copies", type=int, default=0, help="of every shard on neighbours (default 0)")
    parser.add_argument("--repetitions", type=int, default=5, help="moves there and back, in turns (default 5)")


def run(arguments: argparse.Namespace) -> Result:
    """Measure what was asked for; call it before this process has threads.

    Raises:
        ConfigError: an argument is wrong.
        BenchError: a job failed, or computed something else than one worker to whom nothing happens.
    """
    check(arguments)
    ranks = _measure(arguments)
    compare(ranks)
    measured = {name: figures([rank["moves"][name] for rank in ranks if name in rank["moves"]]) for name in CONTENDERS}
    ratios = ratios_of(measured)
    data_parallel = arguments.workers // STAGES
    return Result(
        bench="migration",
        config={
            "workers": arguments.workers,
            "stages": STAGES,
            "data_parallel": data_parallel,
            "layers": arguments.layers,
            "layer_parameters": 12 * arguments.width**2,
            "layer_ms": arguments.layer_ms,
            "copies": arguments.copies,
            "moves": 2 * arguments.repetitions,
            "steps_compared": len(ranks[-1]["digests"]),
        },
        contenders=summary(measured),
        ratios=ratios,
        targets=tuple(targets_of(ratios, data_parallel)),
        notes=(
            f"{arguments.workers} paced workers share {os.cpu_count()} cores: what all of them do before they compute, "
            "such as to agree and to plan, takes longer than with cores of their own; it is part of every stall",
            "stall_ms: until the last worker computes, beside a healthy step, and what it waits for at the step's end",
            "step_longer_ms: the step in which a layer moves, beside steps of the same layout, however caused",
            "resumed_ms: until the last worker has done all that it must do before it computes",
            "*_received_mib: by the worker that receives most; state is master weights and moments",
            f"every step's digest equals that of one worker without a move: {len(ranks[-1]['digests'])} steps",
        ),
    )


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for what cannot be measured."""
    if arguments.workers < 2 * STAGES or arguments.workers % STAGES:
        raise ConfigError("--workers", arguments.workers, "give an even number of at least 4: state is cut in a stage")
    if arguments.layers < 2 * STAGES or arguments.layers % STAGES:
        raise ConfigError("--layers", arguments.layers, "give an even number of at least 4: one moves, one stays")
    if arguments.width < 64 or arguments.width % 64:
        raise ConfigError("--width", arguments.width, "give a multiple of 64: shards begin at multiples of 256")
    if arguments.repetitions < 1:
        raise ConfigError("--repetitions", arguments.repetitions, "give at least 1")
    if arguments.layer_ms < 0 or arguments.copies < 0:
        raise ConfigError("--layer-ms, --copies", (arguments.layer_ms, arguments.copies), "give 0 or more")


# -- measuring -------------------------------------------------------------------------------------------------


def config_of(arguments: argparse.Namespace, kind: ZeroLayout, *, background: bool = True) -> Config:
    return from_mapping(
        {
            "training": {
                "steps": STEPS_MAX,
                "train_batch_size": 2 * arguments.workers // STAGES,
                "micro_batch_size": 1,
            },
            "parallelism": {"stages": STAGES, "zero_layout": str(kind)},
            "elasticity": {"spares": 0, "background_migration": background},
            "snapshot": {"copies": arguments.copies},
        }
    )


def visits(repetitions: int) -> Iterator[str]:
    """Whose turn it is: every contender once per repetition, in an order that changes."""
    for repetition in range(repetitions):
        yield from random.Random(repetition).sample(CONTENDERS, len(CONTENDERS))


def costs_of(num_layers: int, *, shifted: bool) -> list[float]:
    """Of the layers: equal, or such that the second of two stages gets one layer more."""
    half = num_layers // STAGES
    return [(half + 0.5) / (half - 1) if shifted else 1.0] * half + [1.0] * half


def _measure(arguments: argparse.Namespace) -> list[Any]:
    """What every worker of both jobs found, and behind them what the one worker of a third job did."""
    importlib.import_module("torch._dynamo")  # the first optimizer needs it, and it takes seconds; forks share it
    kinds, workers = list(ZeroLayout), arguments.workers
    timeout_s = START_TIMEOUT_S + (1 + len(CONTENDERS) * arguments.repetitions) * VISIT_TIMEOUT_S
    with ExitStack() as nodes:
        timeouts = [Timeouts.from_settings(config_of(arguments, kind).elasticity) for kind in kinds]
        environments = [
            nodes.enter_context(local_node(f"bench-migration-{kind}", workers, limits))
            for kind, limits in zip(kinds, timeouts, strict=True)
        ]

        def body(me: Rank) -> Any:
            if me.rank == workers * len(kinds):
                return _reference(me, arguments)
            turn = me.rank // workers
            os.environ.update(environments[turn])
            return _Worker(me, arguments, kinds[turn]).run()

        return run_ranks(workers * len(kinds) + 1, body, timeout_s)


class _Training:
    """A job of this process's own, or its part of one."""

    def __init__(self, config: Config, arguments: argparse.Namespace, layer_s: float) -> None:
        self.first_forward: dict[int, float] = {}
        self.job: Job = join(config, probe=self._reached)
        self.model = self.job.pipeline(
            Blocks(arguments.layers, arguments.width, layer_s), Vectors(SEQUENCE_LENGTH, arguments.width)
        )
        self._optimizer = self.job.shard(optimizer_maker(config.optimizer), self.model)
        self._attempts = self.job.attempts()
        self.digests: dict[int, str] = {}

    def _reached(self, step: int, point: str, job: Job) -> None:
        if point == Stage.FORWARD:
            self.first_forward.setdefault(step, time.monotonic())

    def step(self) -> float:
        """Compute a step; returns when it was committed, monotonic seconds."""
        with next(self._attempts) as attempt:
            self.model.forward_backward(attempt.micro_batches)
            self._optimizer.step()
        committed = time.monotonic()
        self.digests[self.job.step] = f"{combine(self.job.holding.digests[self.job.step]):016x}"
        return committed


def _reference(me: Rank, arguments: argparse.Namespace) -> Any:
    """One worker to whom nothing happens computes as many steps as both jobs did, when they are done."""
    for _ in visits(arguments.repetitions):
        me.meet()
        me.meet()
    steps = max(me.exchange(0))
    training = _Training(config_of(arguments, ZeroLayout.CONTIGUOUS), arguments, 0.0)
    while training.job.step < steps:
        training.step()
    return {"moves": {}, "digests": training.digests}


class _Worker:
    """One worker of the job that cuts its state in one way."""

    def __init__(self, me: Rank, arguments: argparse.Namespace, kind: ZeroLayout) -> None:
        self._me, self._arguments, self._kind = me, arguments, kind
        self._configs = {
            mode: config_of(arguments, kind, background=mode == BACKGROUND) for mode in (BLOCKING, BACKGROUND)
        }
        self._training = _Training(self._configs[BLOCKING], arguments, arguments.layer_ms / 1e3)
        self._training.step()
        self._there_and_back()  # memory that is used for the first time takes long

    def run(self) -> Any:
        moves: dict[str, list[Move]] = {name: [] for name in CONTENDERS if name.startswith(self._kind)}
        for name in visits(self._arguments.repetitions):
            self._me.meet()
            if name in moves:
                self._training.job.config = self._configs[name.removeprefix(f"{self._kind}, ")]
                moves[name] += self._there_and_back()
            self._me.meet()
        self._me.exchange(self._training.job.step)
        # the job stays open: a node ends workers that have hung up, and this one still has to hand over its laps
        return {"moves": moves, "digests": self._training.digests}

    def _there_and_back(self) -> list[Move]:
        before = [self._training.step() for _ in range(WARM_UP_STEPS)][-1]
        moves = []
        for shifted in (True, False):
            moves.append(self._move(before, shifted=shifted))
            before = moves[-1]["committed"][-1]
        return moves

    def _move(self, before: float, *, shifted: bool) -> Move:
        training = self._training
        job, held, number = training.job, training.model.stage.held, training.job.step + 1
        replan(job, costs_of(self._arguments.layers, shifted=shifted))
        if training.model.stage.held == held:
            raise BenchError("no layer has moved")
        resumed, waited_s = time.monotonic(), job.migration.waited_s
        committed = [before, *(training.step() for _ in range(1 + SETTLED_STEPS))]
        return {
            "committed": committed,
            "resumed": resumed,
            "first_forward": [training.first_forward[step] for step in range(number, number + len(committed) - 1)],
            "waited_at_end_s": job.migration.waited_s - waited_s,
            "state_bytes": job.migration.bytes_received,
            "weight_bytes": job.migration.weight_bytes,
        }


# -- what it means ---------------------------------------------------------------------------------------------


def compare(ranks: Sequence[Any]) -> None:
    """Raises BenchError where some worker's state is not that of one worker without a move."""
    truth = ranks[-1]["digests"]
    for number, rank in enumerate(ranks):
        wrong = [step for step, digest in rank["digests"].items() if truth[step] != digest]
        if wrong:
            raise BenchError(f"worker {number}: the state of step {min(wrong)} is not that of a run without a move")


def figures(workers: Sequence[Sequence[Move]]) -> dict[str, list[float]]:
    """Metric -> one value per move.

    Args:
        workers: of each of them its moves.
    """
    found: dict[str, list[float]] = {}
    for move in zip(*workers, strict=True):
        for metric, value in _figures_of(move).items():
            found.setdefault(metric, []).append(value)
    return found


def _figures_of(move: Sequence[Move]) -> dict[str, float]:
    committed = [max(times) for times in zip(*(one["committed"] for one in move), strict=True)]
    steps = [end - start for start, end in pairwise(committed)]
    healthy_s = median(steps[2:])
    # of each worker, from the last commit to its first forward, in every step
    delays = [[first - start for first, start in zip(one["first_forward"], committed, strict=False)] for one in move]
    until_computing_s = max(own[0] - median(own[2:]) for own in delays)
    waited_at_end_s = max(one["waited_at_end_s"] for one in move)
    return {
        "stall_ms": 1e3 * (until_computing_s + waited_at_end_s),
        "until_computing_ms": 1e3 * until_computing_s,
        "waited_at_end_ms": 1e3 * waited_at_end_s,
        "resumed_ms": 1e3 * (max(one["resumed"] for one in move) - committed[0]),
        "step_longer_ms": 1e3 * (steps[0] - healthy_s),
        "next_step_longer_ms": 1e3 * (steps[1] - healthy_s),
        "healthy_step_ms": 1e3 * healthy_s,
        "state_received_mib": max(one["state_bytes"] for one in move) / 2**20,
        "state_received_by_all_mib": sum(one["state_bytes"] for one in move) / 2**20,
        "weights_received_mib": max(one["weight_bytes"] for one in move) / 2**20,
    }


def summary(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Metrics]:
    return {name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in measured.items()}


def ratios_of(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Spread]:
    """Everything beside what is blocking and contiguous, move by move; and the bytes."""
    found = {}
    for name in CONTENDERS:
        if name == BASELINE:
            continue
        for metric in ("stall_ms", "step_longer_ms"):
            pairs = paired_ratios(measured[name][metric], measured[BASELINE][metric])
            if pairs:
                found[f"{name} / {BASELINE}, {metric}"] = spread(pairs)
    for name in (f"{ZeroLayout.INTERLEAVED}, {BLOCKING}", BEST):
        pairs = paired_ratios(measured[name]["state_received_mib"], measured[BASELINE]["state_received_mib"])
        found[f"{name} / {BASELINE}, state_received_mib"] = spread(pairs)
    return found


def targets_of(ratios: Mapping[str, Spread], data_parallel: int) -> list[Target]:
    bytes_ratio = ratio_median(ratios, f"{BEST} / {BASELINE}, state_received_mib")
    stall = ratio_median(ratios, f"{BEST} / {BASELINE}, stall_ms")
    return [
        at_most("bytes per rank, interleaved / contiguous", bytes_ratio, 1 / data_parallel),
        at_least(
            "share of the stall that is saved, non-blocking interleaved", None if stall is None else 1 - stall, GOAL
        ),
    ]
