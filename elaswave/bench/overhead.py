"""What a healthy step costs beside those of trainers that survive nothing: DDP, ZeRO optimizers, a 1F1B pipeline.

The same model, data, micro-batches, dropout, clipping and AdamW, the same number of processes with the same number of
threads, all contenders alive at once and in turns. The first step of each must have the same loss, or nothing is told.
There are three kinds of rivals, and each is set up to do well (see `bench/rivals`):

- data parallel: DistributedDataParallel.
- sharded optimizer: DDP with ZeroRedundancyOptimizer, and DeepSpeed with ZeRO stage 1. ElasWave always shards, so the
  same ElasWave jobs stand beside both kinds.
- pipeline: torch.distributed.pipelining with its 1F1B schedule, beside ElasWave with as many stages.

ElasWave runs as it comes, with events on disk and copies of every shard on neighbours, and once more without copies.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from elaswave.bench import resident
from elaswave.bench.result import Result, Spread, Target, at_most, paired_ratios, ratio_median, spread
from elaswave.bench.turns import Contender, Measured, Trainer, summary, take_turns
from elaswave.config import Config, from_mapping, load
from elaswave.errors import BenchError, ConfigError

DATA, SHARDED, PIPELINE = "data parallel", "sharded optimizer", "pipeline"
EXACT, FAST = "elaswave exact", "elaswave fast"
EXACT_BARE, FAST_BARE = f"{EXACT}, no copies", f"{FAST}, no copies"
EXACT_STAGES, FAST_STAGES = f"{EXACT}, stages", f"{FAST}, stages"
DDP, ZERO, DEEPSPEED, ONE_F_ONE_B = "torch DDP", "torch DDP + ZeRO optimizer", "deepspeed ZeRO-1", "torch 1F1B"
GOALS = {EXACT: 1.1, FAST: 1.0, EXACT_STAGES: 1.1, FAST_STAGES: 1.0}
"""Most that a step may take, in steps of the best rival."""
OURS = {DATA: (EXACT, FAST), SHARDED: (EXACT, FAST), PIPELINE: (EXACT_STAGES, FAST_STAGES)}
BARE = {EXACT: EXACT_BARE, FAST: FAST_BARE}
RIVALS = {DATA: (DDP,), SHARDED: (ZERO, DEEPSPEED), PIPELINE: (ONE_F_ONE_B,)}
CONTENDERS = (EXACT, FAST, EXACT_BARE, FAST_BARE, DDP, ZERO, DEEPSPEED, EXACT_STAGES, FAST_STAGES, ONE_F_ONE_B)
PACKAGES = {DEEPSPEED: "deepspeed"}
STEPS_MAX = 1_000_000
LOSS_TOLERANCE = 1e-4
"""Relative; sums in another order differ by far less, other samples or other dropout by far more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="processes of each contender, also stages (default 2)")
    parser.add_argument("--repetitions", type=int, default=15, help="blocks of every contender, in turns (default 15)")
    parser.add_argument("--steps", type=int, default=2, help="steps per block (default 2)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--config", metavar="FILE", help="what to train (default: a GPT of 6 layers of width 256)")


def run(arguments: argparse.Namespace) -> Result:
    """Measure what was asked for; call it before this process has threads.

    Raises:
        ConfigError: an argument is wrong, or a contender was named that is not installed.
        BenchError: a contender failed, or trains something else than the others.
    """
    base = workload(arguments.config)
    _check(arguments, base)
    absent = [name for name in CONTENDERS if not _installed(name)]
    names = arguments.contenders or [name for name in CONTENDERS if name not in absent]
    contenders = {name: contender(name, base, arguments.workers) for name in names}
    measured = take_turns(
        contenders, workers=arguments.workers, steps=arguments.steps, repetitions=arguments.repetitions
    )
    _same_training({name: metrics.pop("first_loss")[0] for name, metrics in measured.items()})
    ratios = ratios_of(measured)
    return Result(
        bench="overhead",
        config={
            "workers": arguments.workers,
            "repetitions": arguments.repetitions,
            "steps_per_block": arguments.steps,
            "training": base.training.model_dump(mode="json"),
            "model": base.model.model_dump(mode="json"),
            "snapshot": base.snapshot.model_dump(mode="json"),
        },
        contenders=summary(measured),
        ratios=ratios,
        targets=tuple(targets_of(measured, ratios)),
        notes=(
            "peak_mib: per worker, beyond its imports; memory that workers share is counted once (PSS)",
            "copies_mib: what of that a worker keeps of its neighbours' shards, with room for the version on its way",
            *(f"{name} was left out: pip install -e .[bench]" for name in absent if not arguments.contenders),
        ),
    )


def workload(path: str | None) -> Config:
    """The config that all contenders train, without an end of its own.

    Raises:
        ConfigError: the file is wrong.
    """
    endless = ["--training.steps", str(STEPS_MAX), "--elasticity.spares", "0"]
    if path is not None:
        return load(path, endless)
    return load(None, ["--model.layers", "6", "--model.width", "256", *endless])


def settings_of(name: str, workers: int) -> dict[str, dict[str, Any]]:
    """Settings by section in which an ElasWave contender differs from the common config."""
    found: dict[str, dict[str, Any]] = {"training": {"numerics": "exact" if name.startswith(EXACT) else "fast"}}
    if name in (EXACT_BARE, FAST_BARE):
        found["snapshot"] = {"copies": 0}
    if name in (EXACT_STAGES, FAST_STAGES):
        found["parallelism"] = {"stages": workers, "schedule": "1f1b"}
    return found


def contender(name: str, base: Config, workers: int) -> Contender:
    """Everything that `take_turns` must know.

    Raises:
        ConfigError: the config cannot be trained in this way.
    """
    if name.startswith((EXACT, FAST)):
        return _own(name, base, workers)
    from elaswave.bench.rivals import deepspeed_zero
    from elaswave.bench.rivals.gloo import store

    module, make = {
        DDP: ("ddp", lambda rival, worker: rival.Ddp(base, worker, workers, sharded=False)),
        ZERO: ("ddp", lambda rival, worker: rival.Ddp(base, worker, workers, sharded=True)),
        DEEPSPEED: ("deepspeed_zero", lambda rival, worker: rival.DeepSpeedZero(base, worker, workers)),
        ONE_F_ONE_B: ("pipelining", lambda rival, worker: rival.Pipelining(base, worker, workers)),
    }[name]
    service = partial(store, **deepspeed_zero.ENVIRONMENT) if name == DEEPSPEED else store
    return _watched(service, f"elaswave.bench.rivals.{module}", make, PACKAGES.get(name))


def _own(name: str, base: Config, workers: int) -> Contender:
    from elaswave.bench.own_job import own_service

    values = base.model_dump(mode="json")
    for section, settings in settings_of(name, workers).items():
        values[section] |= settings
    config = from_mapping(values)
    service = partial(own_service, f"overhead-{name}", config, workers)
    return _watched(service, "elaswave.bench.own_job", lambda own, worker: own.OwnTrainer(config))


def _watched(
    service: Callable[[], AbstractContextManager[Mapping[str, str]]],
    module: str,
    make: Callable[[Any, int], Trainer],
    package: str | None = None,
) -> Contender:
    """A contender whose workers import first, and are watched from there on."""

    def start(worker: int) -> Trainer:
        found = importlib.import_module(module)
        if package is not None:
            importlib.import_module(package)
        idle_bytes = resident.now_bytes()
        resident.forget_peak()
        return _Watched(make(found, worker), idle_bytes)

    return Contender(service=service, start=start)


@dataclass(slots=True)
class _Watched:
    """A trainer, and what it takes."""

    trainer: Trainer
    idle_bytes: int
    first_loss: float | None = None
    begun: bool = False

    def steps(self, count: int) -> None:
        if self.begun:
            self.trainer.steps(count)
            return
        self.trainer.steps(1)
        self.begun, self.first_loss = True, self.trainer.figures()["loss"]
        self.trainer.steps(count - 1)

    def figures(self) -> dict[str, float | None]:
        told = {name: value for name, value in self.trainer.figures().items() if name != "loss"}
        peak_mib = (resident.peak_bytes() - self.idle_bytes) / 2**20
        return {"peak_mib": peak_mib, **told, "first_loss": self.first_loss}


def _installed(name: str) -> bool:
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def _check(arguments: argparse.Namespace, base: Config) -> None:
    if arguments.workers < 2:
        raise ConfigError("--workers", arguments.workers, "give at least 2")
    for key in ("repetitions", "steps"):
        if getattr(arguments, key) < 1:
            raise ConfigError(f"--{key}", getattr(arguments, key), "give at least 1")
    if base.micro_batches % arguments.workers:
        raise ConfigError(
            "--workers", arguments.workers, f"must divide the {base.micro_batches} micro-batches of a step evenly"
        )
    for name in arguments.contenders or ():
        if not _installed(name):
            raise ConfigError("--contenders", name, "is not installed: pip install -e .[bench], or name the others")


def _same_training(losses: Mapping[str, float]) -> None:
    """All contenders must have begun with the same loss."""
    if max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE * abs(max(losses.values())):
        raise BenchError(f"the contenders do not train the same: the losses of their first steps are {losses}")


def ratios_of(measured: Measured) -> dict[str, Spread]:
    """What ElasWave takes in terms of every rival of the same kind, repetition by repetition."""
    found: dict[str, Spread] = {}
    for kind, rivals in RIVALS.items():
        for rival in (name for name in rivals if name in measured):
            for ours in (name for name in OURS[kind] if name in measured):
                for metric in ("step_ms", "cpu_per_worker_ms"):
                    values = paired_ratios(measured[ours][metric], measured[rival][metric])
                    found[f"{ours} / {rival}, {metric}"] = spread(values)
                found[memory_name(ours, rival)] = spread(_memory(measured[ours], measured[rival]))
                bare = BARE.get(ours)
                if bare in measured:
                    values = paired_ratios(measured[bare]["peak_mib"], measured[rival]["peak_mib"])
                    found[f"{bare} / {rival}, peak_mib"] = spread(values)
    return found


def memory_name(ours: str, rival: str) -> str:
    """Name of the ratio that the target of memory is about."""
    return f"{ours} / ({rival} + copies), peak_mib"


def _memory(ours: Mapping[str, Sequence[float]], rival: Mapping[str, Sequence[float]]) -> list[float]:
    allowed = [peak + copies for peak, copies in zip(rival["peak_mib"], ours["copies_mib"], strict=True)]
    return paired_ratios(ours["peak_mib"], allowed)


def targets_of(measured: Measured, ratios: Mapping[str, Spread]) -> list[Target]:
    """Against the best rival of each kind: the fastest for time, the smallest for memory."""
    targets = []
    for kind, rivals in RIVALS.items():
        present = [name for name in rivals if name in measured]
        for ours in (name for name in OURS[kind] if name in measured and present):
            fastest = best(measured, present, "step_ms")
            ratio = f"{ours} / {fastest}, step_ms"
            targets.append(at_most(f"{kind}: {ratio}", ratio_median(ratios, ratio), GOALS[ours]))
            smallest = best(measured, present, "peak_mib")
            ratio = memory_name(ours, smallest)
            targets.append(at_most(f"{kind}: {ratio}", ratio_median(ratios, ratio), 1.0))
    return targets


def best(measured: Measured, names: Sequence[str], metric: str) -> str:
    """The contender with the lowest median."""
    return min(names, key=lambda name: median(measured[name][metric]))
