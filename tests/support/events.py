"""Makes the events of a run that never happened: deterministic, and shaped like those of a real one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_T = 1_700_000_000.0
STEP_S = 0.1
PHASES_S = {
    "detect": 0.010,
    "agree": 0.005,
    "plan": 0.002,
    "relink": 0.008,
    "restore": 0.020,
    "migrate": 0.004,
    "resume": 0.001,
}
"""Phases of every made-up survivor; the others wait for rank `slow_rank`, which restores longer."""
DETECT_GAP_S = 0.050
"""From the fault to a survivor's own DETECT."""

CONFIG: dict[str, Any] = {
    "model": {"name": "gpt", "layers": 2, "width": 64},
    "data": {"source": "stdlib", "path": ""},
    "training": {"steps": 20, "train_batch_size": 16, "micro_batch_size": 2, "seed": 7, "numerics": "exact"},
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "parallelism": {"zero_layout": "interleaved"},
    "elasticity": {"min_workers": 1},
    "snapshot": {"copies": 2},
    "run": {"name": "made-up"},
}


def worker_id(rank: int, generation: int = 0) -> str:
    return f"{rank:06x}{generation:06x}"


@dataclass
class Kill:
    """Rank `rank` dies while `step` is computed; `replaced_at` is the step at whose start a new worker holds it."""

    rank: int
    step: int
    replaced_at: int | None = None
    fault_event: bool = True
    death_event: bool = True
    extra_restore_s: float = 0.010


@dataclass
class MadeUpRun:
    """Writes down what a job of `workers` would tell."""

    workers: int = 4
    steps: int = 20
    micro_batches: int = 8
    kills: Sequence[Kill] = ()
    spans: bool = True
    seed: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    now: float = START_T
    epoch: int = 1

    def __post_init__(self) -> None:
        self.holders = {rank: (worker_id(rank), 1000 + rank) for rank in range(self.workers)}
        self._run()

    def emit(self, kind: str, rank: int | None = None, t: float | None = None, **fields: Any) -> None:
        who: dict[str, Any] = {"node_id": "a0"}
        if rank is not None:
            holder, pid = self.holders[rank]
            who = {"rank": rank, "worker_id": holder, "pid": pid}
        self.events.append({"t": self.now if t is None else t, "kind": kind, **who, **fields})

    def shares(self) -> dict[int, list[int]]:
        ranks = sorted(self.holders)
        return {rank: list(range(self.micro_batches))[i :: len(ranks)] for i, rank in enumerate(ranks)}

    def _view(self, reason: str) -> None:
        members = [[rank, *holder] for rank, holder in sorted(self.holders.items())]
        self.emit("view", epoch=self.epoch, members=members, reason=reason, paused=False)
        for rank in self.holders:
            self.emit("view", rank, self.now + 0.001, epoch=self.epoch, members=members, reason=reason, paused=False)

    def _run(self) -> None:
        training = {**CONFIG["training"], "steps": self.steps, "train_batch_size": 2 * self.micro_batches}
        self.emit("run", config={**CONFIG, "training": training}, name="made-up", workers=self.workers)
        self._view("formed")
        for rank in self.holders:
            self.emit("joined", rank, epoch=1, step=0)
            self.emit("recovery", rank, epoch=1, step=0, lost=[], cause="start", phases_s={}, plan="all alike")
        for step in range(1, self.steps + 1):
            for kill in self.kills:
                if kill.replaced_at == step:
                    self._replace(kill, step)
            for kill in self.kills:
                if kill.step == step:
                    self._kill(kill, step)
            self._step(step)

    def _step(self, step: int) -> None:
        if self.spans:
            for rank in self.holders:
                for i, stage in enumerate(("forward", "backward", "reduce", "commit")):
                    t0 = self.now + i * STEP_S / 4
                    self.emit("span", rank, t0 + STEP_S / 4, name=stage, t0=t0, t1=t0 + STEP_S / 4, step=step)
        self.now += STEP_S
        loss = 4.0 / (1 + 0.1 * step) + 0.01 * ((step * 7919) % 13) / 13
        digest = f"{(step * 0x9E3779B97F4A7C15 + self.seed) & (2**64 - 1):016x}"
        for rank, ids in self.shares().items():
            self.emit(
                "step_committed",
                rank,
                self.now + 0.001 * rank,
                step=step,
                epoch=self.epoch,
                loss=loss,
                tokens=2048,
                digest=digest,
                micro_batches=ids,
                step_s=STEP_S,
            )

    def _kill(self, kill: Kill, step: int) -> None:
        fault_t = self.now + 0.030
        victim, pid = self.holders[kill.rank]
        if kill.fault_event:
            self.emit("fault", t=fault_t, what="kill", target_rank=kill.rank, target_pid=pid, step=step, phase=None)
        del self.holders[kill.rank]
        if kill.death_event:
            death_t = fault_t + 0.004
            self.events.append(
                {"t": death_t, "kind": "death", "node_id": "a0", "worker_id": victim, "rank": kill.rank, "pid": pid}
                | {"evidence": "robust mutex"}
            )
        self.epoch += 1
        self.now = fault_t + 0.020
        self._view(f"lost rank {kill.rank}")
        ends = []
        for rank in self.holders:
            phases_s = dict(PHASES_S)
            if rank == max(self.holders):
                phases_s["restore"] += kill.extra_restore_s
            t = fault_t + DETECT_GAP_S
            for name, seconds in phases_s.items():
                self.emit("span", rank, t + seconds, name=name, t0=t, t1=t + seconds, step=step, epoch=self.epoch)
                t += seconds
            self.emit(
                "recovery",
                rank,
                t,
                epoch=self.epoch,
                step=step - 1,
                lost=[kill.rank],
                cause="lost",
                phases_s=phases_s,
                recomputed=1,
                bytes_moved=1000,
                plan="micro-batches shared by the rest",
            )
            ends.append(t)
        self.now = max(ends)

    def _replace(self, kill: Kill, step: int) -> None:
        self.holders[kill.rank] = (worker_id(kill.rank, 1 + self.epoch), 2000 + self.epoch)
        self.epoch += 1
        self._view(f"rank {kill.rank} joined")
        self.emit("joined", kill.rank, epoch=self.epoch, step=0)
        self.now += 0.010
        for rank in self.holders:
            cause = "start" if rank == kill.rank else "join"
            self.emit("recovery", rank, epoch=self.epoch, step=step - 1, lost=[], cause=cause, phases_s={}, plan="even")


def write_run(folder: Path, events: Iterable[Mapping[str, Any]], config: Mapping[str, Any] | None = None) -> Path:
    """Lay out a run folder as the processes of a job would: one file for each."""
    (folder / "events").mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for event in events:
        name = (
            f"rank-{event['rank']}-{event['worker_id']}" if event["kind"] != "death" and "rank" in event else "node-a0"
        )
        with (folder / "events" / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
    return folder
