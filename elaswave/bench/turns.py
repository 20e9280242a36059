"""Jobs that are alive at once and compute in turns, block by block, so that all of them meet the same load.

While one computes, the workers of the others are blocked and cost nothing. The order changes from repetition to
repetition, so that no job always follows the same other.
"""

import importlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from elaswave.bench.forked import Rank, run_ranks
from elaswave.bench.result import Metrics, spread
from elaswave.errors import BenchError

WARM_UP_STEPS = 1
BLOCK_TIMEOUT_S = 60.0
START_TIMEOUT_S = 120.0

Lap = dict[str, float | None]
Measured = dict[str, dict[str, list[float]]]
"""Contender -> metric -> one value per block."""


class Trainer(Protocol):
    """One worker of a job that is under way."""

    def steps(self, count: int) -> None:
        """Compute so many more steps."""
        ...

    def figures(self) -> Mapping[str, float | None]:
        """What else is to be told of this worker, by metric; None where another one tells it. Not timed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A job.

    Attributes:
        service: what must run beside the workers; yields their environment.
        start: index of a worker -> that worker, ready for its first step; called in a process of its own.
    """

    service: Callable[[], AbstractContextManager[Mapping[str, str]]]
    start: Callable[[int], Trainer]


def take_turns(contenders: Mapping[str, Contender], *, workers: int, steps: int, repetitions: int) -> Measured:
    """Let every contender compute a block of steps in every repetition; call it before this process has threads.

    Args:
        contenders: by name.
        workers: of each contender.
        steps: per block, after `WARM_UP_STEPS` that are not counted.
        repetitions: blocks of each contender.

    Returns:
        For each contender `step_ms` of the slowest worker, `cpu_per_worker_ms` of a step, and the mean over the
        workers of every figure that they tell.

    Raises:
        BenchError: a contender failed; names it.
    """
    importlib.import_module("torch._dynamo")  # the first optimizer needs it, and it takes seconds; forks share it
    names = list(contenders)
    timeout_s = len(names) * (START_TIMEOUT_S + repetitions * BLOCK_TIMEOUT_S)
    with ExitStack() as services:
        environments = [services.enter_context(one.service()) for one in contenders.values()]

        def body(me: Rank) -> list[Lap]:
            turn, worker = divmod(me.rank, workers)
            os.environ.update(environments[turn])
            try:
                return _compute(me, contenders[names[turn]], turn, worker, steps, repetitions, len(names))
            except Exception as error:
                raise BenchError(f"{names[turn]} failed") from error

        ranks = run_ranks(workers * len(names), body, timeout_s)
    return {name: collect(ranks[n * workers : (n + 1) * workers]) for n, name in enumerate(names)}


def _compute(
    me: Rank, contender: Contender, turn: int, worker: int, steps: int, repetitions: int, turns: int
) -> list[Lap]:
    """One worker of one contender: starts and computes blocks of steps when it is its turn."""
    trainer: Trainer | None = None
    laps: list[Lap] = []
    for number in range(turns):
        me.meet()
        if number == turn:
            trainer = contender.start(worker)
            trainer.steps(1)
        me.meet()
    assert trainer is not None
    for repetition in range(repetitions):
        for number in random.Random(repetition).sample(range(turns), turns):
            me.meet()
            if number == turn:
                laps.append(_block(trainer, steps))
            me.meet()
    return laps


def _block(trainer: Trainer, steps: int) -> Lap:
    trainer.steps(WARM_UP_STEPS)  # caches hold the memory of the job before
    start, cpu_s = time.monotonic(), time.process_time()
    trainer.steps(steps)
    elapsed_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_s
    return {"step_ms": 1e3 * elapsed_s / steps, "cpu_per_worker_ms": 1e3 * cpu_s / steps, **trainer.figures()}


def collect(workers: Sequence[Sequence[Lap]]) -> dict[str, list[float]]:
    """One value per block and metric from the laps of all workers of a contender."""
    blocks = list(zip(*workers, strict=True))
    if not blocks:
        raise BenchError("no block was measured")
    found = {"step_ms": [max(_told(block, "step_ms")) for block in blocks]}
    for metric in blocks[0][0]:
        if metric != "step_ms":
            found[metric] = [_mean(_told(block, metric)) for block in blocks]
    return found


def _told(block: Sequence[Lap], metric: str) -> list[float]:
    return [value for lap in block if (value := lap[metric]) is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary(measured: Measured) -> dict[str, Metrics]:
    """Spread of every metric over the blocks."""
    return {name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in measured.items()}
