"""From a SIGKILL to the survivors' next step: ElasWave, torchft as it comes and tuned, and a plain torchrun restart.

The same model, data, micro-batches and optimizer, the same number of workers, and the same kill: one worker, in the
middle of a step, once all are under way. Contenders take turns. The rivals are set up to do well:

- torchft is the nightly build, as the stable 0.2.0 loses the whole job in some kills. `default` has its own default
  of 5 s until a silent replica counts as dead, and the 5 s of its example for the process group; `tuned` has 0.5 s for
  both, a quorum tick of 10 ms and heartbeats every 50 ms: about the lowest that a busy machine bears, as lower ones
  take slow replicas for dead. Its torchrun starts the killed replica again.
- the restart saves a checkpoint every step unless told otherwise, which nobody does but gives it the least to compute
  again, and has the one environment variable without which torchrun's restart does not work with gloo.
- torchrun looks at its workers twice as often as its default.
"""

import argparse
import importlib.util
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from elaswave.bench.result import Metrics, Result, Spread, Target, at_least, below, paired_ratios, ratio_median, spread
from elaswave.bench.rivals.jobs import START_TIMEOUT_S, ElasWaveJob, Job, RestartJob, TorchftJob
from elaswave.bench.rivals.observation import HEALTHY_STEPS, Outcome, healthy_step_s
from elaswave.bench.rivals.processes import Processes
from elaswave.config import Config, from_mapping, load
from elaswave.errors import BenchError, ConfigError

ELASWAVE, TORCHFT, TORCHFT_TUNED, RESTART = "elaswave", "torchft default", "torchft tuned", "torchrun restart"
CONTENDERS = (ELASWAVE, TORCHFT, TORCHFT_TUNED, RESTART)
WARM_STEPS = HEALTHY_STEPS + 5
RECOVER_TIMEOUT_S = 120.0
STEPS = 1_000_000
TORCHFT_DEFAULT = {
    "heartbeat_timeout_ms": 5000,
    "heartbeat_interval_ms": 100,
    "quorum_tick_ms": 100,
    "collective_ms": 5000,
}
TORCHFT_BEST = {
    "heartbeat_timeout_ms": 500,
    "heartbeat_interval_ms": 50,
    "quorum_tick_ms": 10,
    "collective_ms": 500,
}
METRICS = ("mttr_s", "stall_s", "healthy_step_s", "back_s")
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A repetition that did not recover."""

    contender: str
    repetition: int
    why: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="worker processes (default 4)")
    parser.add_argument("--repetitions", type=int, default=5, help="kills of every contender, in turns (default 5)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="default: all")
    parser.add_argument("--config", metavar="FILE", help="what to train (default: a GPT of 2 layers of width 64)")
    parser.add_argument(
        "--checkpoint-steps", type=int, default=1, help="steps between the restart's checkpoints (default 1)"
    )


def run(arguments: argparse.Namespace) -> Result:
    """Measure what was asked for.

    Raises:
        ConfigError: an argument is wrong, or torchft is not installed.
        BenchError: a contender did not even start.
    """
    _check(arguments)
    config = workload(arguments.config)
    makers = {name: _maker(name, config, arguments) for name in arguments.contenders}
    outcomes: dict[str, list[Outcome | None]] = {name: [] for name in makers}
    failed: list[Failed] = []
    names = list(makers)
    for repetition in range(arguments.repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            found = once(makers[name](), arguments.workers, repetition)
            if isinstance(found, str):
                failed.append(Failed(contender=name, repetition=repetition, why=found))
            outcomes[name].append(None if isinstance(found, str) else found)
    ratios = ratios_of(outcomes)
    contenders = summary(outcomes)
    return Result(
        bench="mttr",
        config={
            "workers": arguments.workers,
            "repetitions": arguments.repetitions,
            "checkpoint_steps": arguments.checkpoint_steps,
            "training": config.training.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "spares": config.elasticity.spares,
            "failed": {name: sum(one.contender == name for one in failed) for name in names},
        },
        contenders=contenders,
        ratios=ratios,
        targets=tuple(targets_of(contenders, ratios)),
        notes=tuple(f"{one.contender}, repetition {one.repetition} did not recover: {one.why}" for one in failed),
    )


def once(job: Job, workers: int, repetition: int) -> Outcome | str:
    """Start the job, kill one worker in the middle of a step, and wait until all are back; or say why they were not.

    Raises:
        BenchError: the job did not get under way.
    """
    chance = random.Random(f"{SEED} {repetition}")
    slot = 1 + repetition % max(1, workers - 1)
    with Processes() as processes:
        job.start(processes)
        pids = processes.wait(lambda: _under_way(job, workers), START_TIMEOUT_S, "warm-up")
        for pid in pids.values():
            processes.watch(pid)
        step_s = healthy_step_s(job.commits(), time.time(), range(workers))
        time.sleep(chance.random() * step_s)
        killed = job.kill(processes, slot, pids[slot])

        def look() -> Outcome | None:
            outcome = job.outcome(killed, slot, pids[slot])
            for commit in job.commits():
                processes.watch(commit.pid)
            return outcome

        try:
            return processes.wait(look, RECOVER_TIMEOUT_S, "recovery")
        except BenchError as error:
            return str(error)


def _under_way(job: Job, workers: int) -> dict[int, int] | None:
    """The pid of every slot, once all have done enough steps."""
    commits = job.commits()
    counts = [sum(commit.slot == slot for commit in commits) for slot in range(workers)]
    if min(counts) < WARM_STEPS or not job.ready():
        return None
    return {commit.slot: commit.pid for commit in sorted(commits, key=lambda commit: commit.t)}


def workload(path: str | None) -> Config:
    """The config that all contenders train, without an end of its own.

    Raises:
        ConfigError: the file is wrong.
    """
    if path is not None:
        return load(path, ["--training.steps", str(STEPS), "--run.progress", "false"])
    return from_mapping(
        {
            "model": {"layers": 2, "width": 64, "heads": 4, "sequence_length": 64},
            "training": {"steps": STEPS, "train_batch_size": 16, "micro_batch_size": 2},
            "run": {"progress": False},
        }
    )


def _maker(name: str, config: Config, arguments: argparse.Namespace) -> Callable[[], Job]:
    workers = arguments.workers
    if name == ELASWAVE:
        return lambda: ElasWaveJob(config, workers)
    if name == RESTART:
        return lambda: RestartJob(config, workers, every_steps=arguments.checkpoint_steps)
    return lambda: TorchftJob(config, workers, **(TORCHFT_DEFAULT if name == TORCHFT else TORCHFT_BEST))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.workers < 2:
        raise ConfigError("--workers", arguments.workers, "give at least 2: one is killed")
    if arguments.checkpoint_steps < 1:
        raise ConfigError("--checkpoint-steps", arguments.checkpoint_steps, "give at least 1")
    torchft_wanted = any(name in (TORCHFT, TORCHFT_TUNED) for name in arguments.contenders)
    if torchft_wanted and importlib.util.find_spec("torchft") is None:
        raise ConfigError("--contenders", "torchft", "is not installed: pip install -e .[bench], or name the others")


def summary(outcomes: Mapping[str, Sequence[Outcome | None]]) -> dict[str, Metrics]:
    """Spread of every metric over the repetitions that recovered."""
    return {
        name: {metric: spread([getattr(one, metric) for one in found if one is not None]) for metric in METRICS}
        for name, found in outcomes.items()
        if any(one is not None for one in found)
    }


def ratios_of(outcomes: Mapping[str, Sequence[Outcome | None]]) -> dict[str, Spread]:
    """How many times as long the rivals take, repetition by repetition."""
    ours = outcomes.get(ELASWAVE, ())
    ratios = {}
    for name, theirs in outcomes.items():
        if name == ELASWAVE or not ours:
            continue
        for metric in ("mttr_s", "stall_s"):
            pairs = [[getattr(one, metric) if one is not None else None for one in side] for side in (theirs, ours)]
            if found := paired_ratios(*pairs):
                ratios[f"{name} / {ELASWAVE}, {metric}"] = spread(found)
    return ratios


def targets_of(contenders: Mapping[str, Metrics], ratios: Mapping[str, Spread]) -> list[Target]:
    targets = []
    if ELASWAVE in contenders:
        ours = contenders[ELASWAVE]
        targets.append(below("elaswave: stall of the survivors, s", ours["stall_s"].median, 0.2))
        targets.append(below("elaswave: replacement from a warm spare back in, s", ours["back_s"].median, 0.5))
    for name, goal in ((TORCHFT, 20), (TORCHFT_TUNED, 2), (RESTART, 50)):
        ratio = f"{name} / {ELASWAVE}, mttr_s"
        if ratio in ratios:
            targets.append(at_least(ratio, ratio_median(ratios, ratio), goal))
    return targets
