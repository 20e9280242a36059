"""The jobs that are hurt: ElasWave, torchft and a plain torchrun restart, each behind the same few calls."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from elaswave.bench.rivals import train_restart, train_torchft, variables
from elaswave.bench.rivals.observation import Commit, Outcome, back, healthy_step_s, new_steps, next_commits
from elaswave.bench.rivals.processes import Processes
from elaswave.config import Config
from elaswave.errors import BenchError

START_TIMEOUT_S = 120.0
LIGHTHOUSE = "elaswave.bench.rivals.lighthouse"
MONITOR_INTERVAL_S = 0.05
"""How often torchrun looks at its workers; as in `elaswave launch`, and half of torchrun's default."""


class Job(Protocol):
    """A training job of `workers` slots, numbered from 0."""

    def start(self, processes: Processes) -> None:
        """Start all workers; returns at once."""
        ...

    def commits(self) -> list[Commit]:
        """Everything committed so far."""
        ...

    def ready(self) -> bool:
        """Whether all that should be running is."""
        ...

    def kill(self, processes: Processes, slot: int, pid: int) -> float:
        """SIGKILL the worker of a slot; returns the wall seconds just before."""
        ...

    def outcome(self, killed: float, slot: int, pid: int) -> Outcome | None:
        """What the kill has cost; None while it is not over."""
        ...


class _LoggedJob:
    """Reads what workers write with `workload.Log`."""

    def __init__(self, config: Config, workers: int) -> None:
        self._config, self._workers = config, workers
        self._folder = Path()
        self._offsets: dict[Path, int] = {}
        self._commits: list[Commit] = []

    def _environment(self, folder: Path) -> dict[str, str]:
        self._folder = folder
        return {variables.CONFIG: self._config.model_dump_json(), variables.LOG: str(folder)}

    def ready(self) -> bool:
        return True

    def kill(self, processes: Processes, slot: int, pid: int) -> float:
        return processes.kill(pid)

    def commits(self) -> list[Commit]:
        for path in self._folder.glob("slot-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            self._take(json.loads(line) for line in whole.splitlines())
        return self._commits

    def _take(self, events: Any) -> None:
        for event in events:
            if event["event"] == "step":
                self._commits.append(Commit(**{name: event[name] for name in ("slot", "pid", "step", "begun", "t")}))

    def _survivors(self, slot: int) -> list[int]:
        return [other for other in range(self._workers) if other != slot]


class TorchftJob(_LoggedJob):
    """torchft: every worker is a replica group with a torchrun of its own, which starts it again when it dies.

    Args:
        heartbeat_timeout_ms, heartbeat_interval_ms, quorum_tick_ms: torchft's settings of these names.
        collective_ms: timeout of its process group: how long a survivor between two live neighbours hangs.
    """

    JOIN_TIMEOUT_MS = 10_000
    """As torchft's README has it; the default of 60 s would only make faults worse."""

    def __init__(
        self,
        config: Config,
        workers: int,
        *,
        heartbeat_timeout_ms: int,
        heartbeat_interval_ms: int,
        quorum_tick_ms: int,
        collective_ms: int,
    ) -> None:
        super().__init__(config, workers)
        self._timeout_ms, self._interval_ms, self._tick_ms = heartbeat_timeout_ms, heartbeat_interval_ms, quorum_tick_ms
        self._collective_ms = collective_ms

    def start(self, processes: Processes) -> None:
        environment = self._environment(processes.folder)
        address = processes.folder / "lighthouse"
        processes.start(
            "lighthouse.process",
            LIGHTHOUSE,
            [
                f"--join-timeout-ms={self.JOIN_TIMEOUT_MS}",
                f"--quorum-tick-ms={self._tick_ms}",
                f"--heartbeat-timeout-ms={self._timeout_ms}",
                f"--address-file={address}",
            ],
            environment,
        )
        processes.wait(lambda: address if address.exists() else None, START_TIMEOUT_S, "torchft's lighthouse")
        environment |= {
            "TORCHFT_LIGHTHOUSE": address.read_text(),
            variables.SLOTS: str(self._workers),
            variables.HEARTBEAT_MS: str(self._interval_ms),
            variables.COLLECTIVE_MS: str(self._collective_ms),
        }
        for slot in range(self._workers):
            processes.start(
                f"replica-{slot}",
                "torch.distributed.run",
                torchrun_arguments(1, train_torchft.__name__, fresh_port=True),
                {**environment, variables.SLOT: str(slot)},
            )

    def outcome(self, killed: float, slot: int, pid: int) -> Outcome | None:
        survivors = self._survivors(slot)
        commits = self.commits()
        found, replaced = next_commits(commits, killed, survivors), back(commits, killed, slot, pid)
        if found is None or replaced is None:
            return None
        return _outcome(commits, killed, survivors, max(commit.t for commit in found), replaced.t)


class RestartJob(_LoggedJob):
    """Plain torchrun: when a worker dies all are started again, and load the newest checkpoint.

    A store of its own for every restart (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1) is what makes restarts with gloo work
    at all: with torch's default the restarted workers find addresses of dead ones (pytorch/pytorch#135712).

    Args:
        every_steps: steps between checkpoints.
    """

    def __init__(self, config: Config, workers: int, *, every_steps: int) -> None:
        super().__init__(config, workers)
        self._every_steps = every_steps

    def start(self, processes: Processes) -> None:
        processes.start(
            "torchrun",
            "torch.distributed.run",
            torchrun_arguments(self._workers, train_restart.__name__),
            {
                **self._environment(processes.folder),
                variables.CHECKPOINT_STEPS: str(self._every_steps),
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            },
        )

    def outcome(self, killed: float, slot: int, pid: int) -> Outcome | None:
        commits, everyone = self.commits(), list(range(self._workers))
        found = new_steps(commits, killed, everyone)
        if found is None:
            return None
        back_t = next(commit.t for commit in found if commit.slot == slot)
        return _outcome(commits, killed, self._survivors(slot), max(commit.t for commit in found), back_t)


class ElasWaveJob:
    """`elaswave launch` with a warm spare; the figures are those of the run's own report."""

    def __init__(self, config: Config, workers: int) -> None:
        self._config, self._workers = config, workers
        self._events: list[Mapping[str, Any]] = []
        self._commits: list[Commit] = []
        self._spare_ready = False
        self._epoch = 0
        self._epoch_at_kill = 0
        self._seen: dict[int, int] = {}

    def start(self, processes: Processes) -> None:
        from elaswave.telemetry.follower import Follower

        path = processes.folder / "config.toml"
        path.write_text(as_toml(self._config))
        processes.start(
            "launch",
            "elaswave.cli.main",
            ["launch", str(path), "--workers", str(self._workers), "--run.folder", str(processes.folder / "runs")],
            {},
        )
        self._run = processes.folder / "runs" / "latest"
        self._follower = Follower(self._run)

    def commits(self) -> list[Commit]:
        for event in self._follower.poll():
            kind = event.get("kind")
            if kind == "spare" and event.get("what") == "ready":
                self._spare_ready = True
            elif kind == "step_committed":
                t, rank = float(event["t"]), int(event["rank"])
                self._epoch = max(self._epoch, int(event["epoch"]))
                self._seen[rank] = int(event["epoch"])
                begun = t - float(event["step_s"])
                self._commits.append(
                    Commit(slot=rank, pid=int(event["pid"]), step=int(event["step"]), begun=begun, t=t)
                )
        return self._commits

    def ready(self) -> bool:
        return self._spare_ready or not self._config.elasticity.spares

    def kill(self, processes: Processes, slot: int, pid: int) -> float:
        from elaswave.events import Kind, Recorder
        from elaswave.telemetry.jsonl import JsonlSink

        self._epoch_at_kill = self._epoch
        recorder = Recorder((JsonlSink(self._run, node_id="bench"),), {"pid": pid})
        step = max(commit.step for commit in self._commits) + 1
        recorder.emit(Kind.FAULT, what="kill", target_rank=slot, target_pid=pid, step=step, phase=None)
        recorder.close()
        return processes.kill(pid)

    def outcome(self, killed: float, slot: int, pid: int) -> Outcome | None:
        commits = self.commits()
        replaced = back(commits, killed, slot, pid)
        if replaced is None or any(epoch <= self._epoch_at_kill for epoch in self._seen.values()):
            return None
        from elaswave.report.mttr import recoveries
        from elaswave.telemetry.runs import read_history

        found = [one for one in recoveries(read_history(self._run)) if slot in one.lost_ranks]
        if not found or found[0].mttr_s is None or found[0].stall_s is None:
            raise BenchError(f"the report of the run does not tell the recovery of rank {slot}: {found}")
        return Outcome(
            mttr_s=found[0].mttr_s,
            stall_s=found[0].stall_s,
            healthy_step_s=found[0].mttr_s - found[0].stall_s,
            back_s=replaced.t - killed,
        )


def torchrun_arguments(workers: int, module: str, *, fresh_port: bool = False) -> list[str]:
    """Arguments of a torchrun of one node that may restart its workers many times."""
    from elaswave.coordination.launch_settings import free_port

    return [
        *([f"--master-port={free_port()}"] if fresh_port else []),
        "--nnodes=1",
        f"--nproc-per-node={workers}",
        "--max-restarts=100",
        f"--monitor-interval={MONITOR_INTERVAL_S}",
        "-m",
        module,
    ]


def as_toml(config: Config) -> str:
    """The config as a file for `elaswave launch`."""
    lines = []
    for section, values in config.model_dump(mode="json").items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _outcome(commits: list[Commit], killed: float, survivors: list[int], recovered_t: float, back_t: float) -> Outcome:
    healthy_s = healthy_step_s(commits, killed, survivors)
    mttr_s = recovered_t - killed
    return Outcome(mttr_s=mttr_s, stall_s=mttr_s - healthy_s, healthy_step_s=healthy_s, back_s=back_t - killed)
