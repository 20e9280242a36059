"""Runs of the equivalence campaign: what a seed stands for, and whether the wounded run has the bits of one worker."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elaswave.bench.conductor import Conductor, Tally
from elaswave.bench.miniature import MiniJob
from elaswave.bench.zygote import Zygote
from elaswave.config import Config, Precision, SnapshotMode, Transport, ZeroLayout, from_mapping
from elaswave.config import Schedule as Order
from elaswave.errors import BenchError
from elaswave.faults.scenario import scenario_toml
from elaswave.faults.schedule import Schedule, random_faults
from elaswave.report.facts import History
from elaswave.report.toml import config_toml
from elaswave.telemetry.runs import read_history

STEPS = 24
RUN_TIMEOUT_S = 300.0
SUSPICION_S = 2.0
MODELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gpt": {},
    "tied gpt": {"model": {"tied": True}},
    "encoder": {"model": {"name": "encoder"}, "data": {"source": "masked"}},
    "mixer": {"model": {"name": "mixer", "sequence_length": 64, "patch": 4}, "data": {"source": "digits"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Stages times replicas."""

    stages: int
    replicas: int

    @property
    def workers(self) -> int:
        return self.stages * self.replicas

    def __str__(self) -> str:
        return f"{self.stages}x{self.replicas}"


GRIDS = tuple(Grid(stages=s, replicas=r) for s, r in ((2, 2), (4, 2), (2, 3), (1, 4), (4, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        seed: from which all else follows.
        model: its name in `MODELS`.
        config: of the run.
        schedule: what happens to it.
    """

    seed: int
    grid: Grid
    model: str
    config: Config
    schedule: Schedule

    @property
    def identity(self) -> tuple[str, Precision]:
        """What decides the bits of the run."""
        return self.model, self.config.training.precision

    def __str__(self) -> str:
        parallel, snapshot = self.config.parallelism, self.config.snapshot
        words = [str(self.grid), self.model, str(self.config.training.precision), f"ZeRO {parallel.zero_layout}"]
        if parallel.stages > 1:
            words.append(str(parallel.schedule))
        words += [f"{parallel.virtual_stages} chunks per stage"] if parallel.virtual_stages > 1 else []
        words += ["fluid"] if parallel.fluid else []
        words += ["recomputed activations"] if self.config.training.activation_checkpointing else []
        words += [] if self.config.elasticity.background_migration else ["migration waited for"]
        return ", ".join([*words, f"copies by {snapshot.mode}", str(self.config.elasticity.transport)])


def case_of(seed: int, *, faults: int, steps: int = STEPS) -> Case:
    """What a seed stands for; seeds in a row go through all grids, and on each through all models and precisions.

    Args:
        seed: of the run.
        faults: that are wanted at most.
        steps: of the run.
    """
    turn, column = divmod(seed, len(GRIDS))
    grid, model = GRIDS[column], list(MODELS)[(turn + column) % len(MODELS)]
    precision = list(Precision)[turn % len(Precision)]
    chance = random.Random(f"settings {seed}")
    values = _values(model, precision, steps)
    values["training"]["activation_checkpointing"] = chance.random() < 0.3
    values["parallelism"] = {
        "stages": grid.stages,
        "schedule": list(Order)[(turn + column) % len(Order)],
        "virtual_stages": 2 if grid.stages == 2 and chance.random() < 0.5 else 1,
        "fluid": grid.stages > 1 and chance.random() < 0.4,
        "zero_layout": chance.choice(list(ZeroLayout)),
    }
    values["snapshot"] = {"mode": chance.choice(list(SnapshotMode))}
    values["elasticity"] |= {
        "background_migration": chance.random() < 0.8,
        "transport": chance.choice([Transport.AUTO, Transport.AUTO, Transport.TCP]),
    }
    config = from_mapping(values)
    schedule = random_faults(seed, grid.workers, steps, faults=faults, copies=config.snapshot.copies)
    return Case(seed=seed, grid=grid, model=model, config=config, schedule=schedule)


def reference_config(case: Case) -> Config:
    """The same training by one worker, with nothing that must not change a bit."""
    return from_mapping(_values(case.model, case.config.training.precision, case.config.training.steps))


def _values(model: str, precision: Precision, steps: int) -> dict[str, dict[str, Any]]:
    return {
        "model": {"layers": 2, "width": 32, "heads": 2, "sequence_length": 16, **MODELS[model].get("model", {})},
        "data": dict(MODELS[model].get("data", {})),
        "training": {"steps": steps, "train_batch_size": 16, "micro_batch_size": 2, "precision": precision},
        "optimizer": {"warmup_steps": 2},
        "elasticity": {"collective_timeout_s": 120, "wait_for_workers_s": 60, "suspicion_s": SUSPICION_S},
        "run": {"progress": False},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of a run.

    Attributes:
        tally: what was done to it.
        loss_deviation: mean |loss - loss of one worker| over its steps.
        replicas: whole pipelines that the workers of each committed step could make up.
        mismatches: steps that are missing, or not what one worker makes of them.
        failure: why the run did not end, or what differs; empty when all is well.
        folder: of the run.
    """

    case: Case
    tally: Tally
    loss_deviation: float = 0.0
    replicas: Mapping[int, int] = field(default_factory=dict)
    mismatches: int = 0
    failure: str = ""
    folder: Path = Path()


def reference_of(zygote: Zygote, folder: Path, case: Case) -> History:
    """The unharmed run of one worker.

    Raises:
        BenchError: it did not end in time.
    """
    config = config_toml(reference_config(case).model_dump(mode="json"))
    with MiniJob(zygote, folder, config=config, workers=1) as job:
        return job.wait(RUN_TIMEOUT_S)


def play(zygote: Zygote, folder: Path, case: Case, reference: History, timeout_s: float = RUN_TIMEOUT_S) -> Played:
    """Carry out a case and compare it with the unharmed run of one worker; never raises for what the run does.

    Args:
        zygote: forks the workers.
        folder: of the run; its events and logs stay there.
        case: to carry out.
        reference: what `reference_of` returned for a case of the same identity.
        timeout_s: after which it counts as hung.
    """
    schedule = case.schedule
    job = MiniJob(
        zygote,
        folder,
        config=config_toml(case.config.model_dump(mode="json")),
        workers=schedule.workers,
        guests=schedule.guests,
        faults=scenario_toml(schedule.faults),
        suspicion_s=SUSPICION_S,
    )
    conductor = Conductor(job, schedule)
    try:
        conductor.run(timeout_s)
        failure = ""
    except BenchError as error:
        failure = f"{error}\n{job.log()}"
    finally:
        job.stop()
    history = read_history(folder)
    wrong = differences(history, reference)
    return Played(
        case=case,
        tally=conductor.tally,
        loss_deviation=loss_deviation(history, reference),
        replicas={commit.step: _replicas(history, commit.epoch, case.grid) for commit in history.commits},
        mismatches=len(wrong),
        failure=failure or (f"steps {sorted(wrong)} are not those of one worker" if wrong else ""),
        folder=folder,
    )


def _replicas(history: History, epoch: int, grid: Grid) -> int:
    view = history.view_at(epoch)
    return max(1, (len(view.members) if view is not None else grid.workers) // grid.stages)


def differences(history: History, reference: History) -> set[int]:
    """Steps that are missing, or whose digest or loss some worker told differently from the unharmed run."""
    wanted = {commit.step: (commit.digest, commit.loss) for commit in reference.commits}
    told = [(commit.step, (commit.digest, commit.loss)) for commit in history.commits]
    wrong = {step for step, values in told if wanted.get(step) != values}
    return wrong | (wanted.keys() - {step for step, _ in told})


def loss_deviation(history: History, reference: History) -> float:
    """Mean |loss - loss of the unharmed run| over the steps that both have."""
    wanted = {commit.step: commit.loss for commit in reference.commits}
    pairs = [(commit.loss, wanted.get(commit.step)) for commit in history.commits]
    gaps = [abs(loss - other) for loss, other in pairs if loss is not None and other is not None]
    return sum(gaps) / len(gaps) if gaps else 0.0
