"""Whole jobs in miniature: real node services as threads, real workers forked from a warm process, real signals."""

import os
import queue
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from elaswave.bench.zygote import Zygote
from elaswave.clock import Deadline
from elaswave.coordination.node import NodeService
from elaswave.coordination.secret import VARIABLE, job_secret
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import BenchError
from elaswave.events import Recorder
from elaswave.report.facts import History
from elaswave.session import FAULTS
from elaswave.telemetry.jsonl import JsonlSink
from elaswave.telemetry.runs import read_history

SECRET = "0123456789abcdef0123456789abcdef"
WORKER = "elaswave.train"
LOG_BYTES = 6000
STOP_TIMEOUT_S = 20.0
STACKS_S = 1.0
LEAVE_TIMEOUT_S = 20.0


def warm_process(**environment: str) -> Zygote:
    """What the workers of miniature jobs are forked from; one serves any number of jobs."""
    return Zygote({VARIABLE: SECRET, **environment}, ["sklearn.datasets"])


class MiniJob:
    """One job on this machine, of a first node and perhaps others.

    Args:
        zygote: forks the workers.
        folder: of the run; made when missing.
        config: the settings as TOML.
        overrides: words of a command line that change them.
        workers: that the job forms with.
        guests: so many of them have a node of their own each.
        faults: a scenario as TOML; none when empty.
        replace: start dead workers again in `wait`, as a launcher would.

    Attributes:
        folder: of the run.
        service: the first node's.
        running: local rank of each worker that has not ended, by pid. Nodes do not share local ranks.
        statuses: of the workers that have ended.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        *,
        config: str,
        overrides: Sequence[str] = (),
        workers: int = 4,
        guests: int = 0,
        faults: str = "",
        replace: bool = True,
        suspicion_s: float = 2.0,
    ) -> None:
        self._zygote, self.folder, self._replace = zygote, folder, replace
        self._workers, self._guests, self._suspicion_s = workers, guests, suspicion_s
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config)
        self._argv = ["--config", str(folder / "config.toml"), "--run.progress", "false", *overrides]
        self._env = {"ELASWAVE_RUN_FOLDER": str(folder), VARIABLE: SECRET}
        if faults:
            (folder / "faults.toml").write_text(faults)
            self._env[FAULTS] = str(folder / "faults.toml")
        os.environ[VARIABLE] = SECRET
        self._num_nodes = 0
        self.service = self._make_node(("127.0.0.1", 0), workers - guests)
        self._nodes: dict[int, NodeService] = {}
        self._free_local_rank = workers - guests
        self.running: dict[int, int] = {}
        self.statuses: list[int] = []

    def _make_node(self, seed: tuple[str, int], workers: int) -> NodeService:
        self._num_nodes += 1
        return NodeService(
            run_id=self.folder.name,
            secret=job_secret(self.folder.name),
            seeds=[seed],
            bind="127.0.0.1",
            expected_workers=workers,
            min_nodes=1 + self._guests,
            run_folder=self.folder,
            timeouts=Timeouts(
                heartbeat_s=0.1, suspicion_s=self._suspicion_s, grace_s=0.05, wait_for_workers_s=30, start_timeout_s=60
            ),
            recorder=Recorder((JsonlSink(self.folder, node_id=f"mini{self._num_nodes}"),)),
        )

    def start(self) -> None:
        """Form the job."""
        self.service.start()
        for local_rank in range(self._workers - self._guests):
            self._nodes[local_rank] = self.service
            self.spawn(local_rank)
        for _ in range(self._guests):
            self.add_node()

    def add_node(self) -> int:
        """Start another node with one worker; returns the worker's pid."""
        local_rank, self._free_local_rank = self._free_local_rank, self._free_local_rank + 1
        self._nodes[local_rank] = self._make_node(self.service.address, 1)
        self._nodes[local_rank].start()
        return self.spawn(local_rank)

    def spawn(self, local_rank: int, **env: str) -> int:
        """Start a worker that joins the job; returns its pid."""
        node = self._nodes.get(local_rank, self.service)
        environment = {**self._env, **node.worker_env(), "LOCAL_RANK": str(local_rank), **env}
        pid = self._zygote.fork(WORKER, self._argv, environment, self.folder / "workers.log")
        self.running[pid] = local_rank
        return pid

    @property
    def settled(self) -> bool:
        """Every worker that runs is a member, and every node with a worker has told its workers so."""
        nodes = {self._nodes.get(local_rank, self.service) for local_rank in self.running.values()}
        views = [node.view for node in (self.service, *nodes)]
        return all(
            view is not None and self.running.keys() <= {member.pid for member in view.members} for view in views
        )

    def leave(self, pid: int) -> bool:
        """Have the node of a worker leave the job; false when the job would not survive that or it is leaving."""
        node = self._nodes.get(self.running.get(pid, -1), self.service)
        if node is self.service:
            return False
        threading.Thread(target=self._leave, args=(node,), name="elaswave-leave", daemon=True).start()
        return True

    def _leave(self, node: NodeService) -> None:
        node.leave(Deadline(LEAVE_TIMEOUT_S))

    def ended(self, timeout_s: float) -> tuple[int, int, int] | None:
        """The next worker that ends, as (pid, local rank, exit code or -signal); None when none does in time."""
        deadline = Deadline(timeout_s)
        while True:
            try:
                pid, status = self._zygote.ended.get(timeout=deadline.left_s() or 0.001)
            except queue.Empty:
                return None
            if pid in self.running:
                self.statuses.append(status)
                return pid, self.running.pop(pid), status

    def wait(self, timeout_s: float = 60.0) -> History:
        """Replace the dead until the job is done; returns what the events tell.

        Raises:
            BenchError: it did not end in time, or a worker failed.
        """
        deadline = Deadline(timeout_s)
        while self.running:
            found = self.ended(deadline.left_s())
            if found is None:
                self.show_stacks()
                raise BenchError(f"{self.folder.name}: not done in {timeout_s} s\n{self.log()}")
            _, local_rank, status = found
            if status < 0 and self._replace and not self.service.finished:
                self.spawn(local_rank)
            elif status > 0:
                raise BenchError(f"{self.folder.name}: a worker ended with {status}\n{self.log()}")
        return read_history(self.folder)

    def show_stacks(self) -> None:
        """Have every worker write what its threads are doing into the log."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        if self.running:
            self.ended(STACKS_S)

    def log(self) -> str:
        """The end of what the workers printed."""
        path = self.folder / "workers.log"
        return path.read_text(errors="replace")[-LOG_BYTES:] if path.exists() else ""

    def stop(self) -> None:
        """Leave nothing running."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.running and self.ended(STOP_TIMEOUT_S) is not None:
            continue
        for node in {*self._nodes.values(), self.service}:
            node.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def digests(history: History) -> dict[int, str]:
    """Digest of each committed step.

    Raises:
        BenchError: workers told different ones.
    """
    found: dict[int, str] = {}
    for commit in history.commits:
        if found.setdefault(commit.step, str(commit.digest)) != commit.digest:
            raise BenchError(f"step {commit.step}: digests differ")
    return found
