"""A job of toy workers under real torchrun agents: start, hurt, and wait for what the workers report."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elaswave.clock import Deadline
from elaswave.coordination.launch_settings import free_port

Event = dict[str, Any]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TIMEOUT_S = 60.0


class ToyJob:
    """Agents, their workers, and a FIFO through which the workers speak.

    Args:
        folder: for output, logs, the FIFO and the run folders.
        environment: variables for all agents.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.run_id = f"toy-{secrets.token_hex(4)}"
        self.events: list[Event] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        self._stop = folder / "stop"
        fifo = folder / "events"
        os.mkfifo(fifo)
        self._fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._pidfds: dict[int, int] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ELASWAVE_", "PET_"))},
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "OMP_NUM_THREADS": "1",
            "TOY_EVENTS": str(fifo),
            "TOY_STOP": str(self._stop),
            "ELASWAVE_SECRET": secrets.token_hex(16),
            "ELASWAVE_RUNS": str(folder / "runs"),
            "ELASWAVE_SPARES": "0",
            **(environment or {}),
        }

    # -- agents -----------------------------------------------------------------------------------------------

    def torchrun(
        self,
        workers: int,
        nodes: str = "1",
        *,
        options: Sequence[str] = (),
        command: Sequence[str] = ("-m", "support.toy_worker"),
        environment: Mapping[str, str] | None = None,
        restarts: int = 100,
    ) -> subprocess.Popen[bytes]:
        """Start one agent with the usual options."""
        return self.start(
            [
                *TORCHRUN,
                "--rdzv-backend=elaswave",
                f"--rdzv-endpoint=127.0.0.1:{self.port}",
                f"--rdzv-id={self.run_id}",
                f"--nnodes={nodes}",
                f"--nproc-per-node={workers}",
                f"--max-restarts={restarts}",
                "--monitor-interval=0.05",
                f"--log-dir={self.folder}/logs",
                *options,
                *command,
            ],
            environment,
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start any command as an agent of this job; its output goes to a file."""
        name = str(len(self.agents))
        env = {**self.environment, "TOY_AGENT": name, **(environment or {})}
        with (self.folder / f"agent{name}.out").open("wb") as output:
            agent = subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.agents.append(agent)
        return agent

    def output(self, agent: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"agent{self.agents.index(agent)}.out").read_text(errors="replace")

    def ended(self, agent: subprocess.Popen[bytes], timeout_s: float = TIMEOUT_S) -> int:
        """Exit status of an agent; reads events while it waits, so that no worker blocks on a full pipe."""
        deadline = Deadline(timeout_s)
        fd = os.pidfd_open(agent.pid) if agent.poll() is None else None
        try:
            while agent.poll() is None:
                assert not deadline.passed(), f"agent still runs after {timeout_s} s:\n{self._story()}"
                select.select([fd, self._fifo], [], [], deadline.left_s())
                self._drain()
        finally:
            if fd is not None:
                os.close(fd)
        return agent.returncode

    def finish(self) -> None:
        """Tell the workers that the last step is done."""
        self._stop.touch()

    # -- events -----------------------------------------------------------------------------------------------

    def wait(self, wanted: Callable[[Event], bool], timeout_s: float = TIMEOUT_S) -> Event:
        """The first event, past or to come, that is wanted."""
        deadline, seen = Deadline(timeout_s), 0
        while True:
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            assert not deadline.passed(), f"not seen within {timeout_s} s:\n{self._story()}"
            select.select([self._fifo], [], [], deadline.left_s())
            self._drain()

    def wait_joined(self, ranks: Sequence[int], since: int = 0) -> dict[int, int]:
        """Wait until each of these ranks has joined after event number `since`; returns rank -> pid."""
        return {rank: self.wait(self.after(since, lambda e, r=rank: _joined(e, r)))["pid"] for rank in ranks}

    def wait_view(self, ranks: Sequence[int], pid: int, since: int = 0) -> Event:
        """Wait until the worker `pid` sees a view with exactly these ranks, after event number `since`."""
        wanted = sorted(ranks)
        return self.wait(
            self.after(since, lambda e: e["event"] == "view" and e["pid"] == pid and sorted(e["ranks"]) == wanted)
        )

    def after(self, since: int, wanted: Callable[[Event], bool]) -> Callable[[Event], bool]:
        """`wanted`, but only for events later than the first `since`."""
        return lambda event: event["number"] >= since and wanted(event)

    def mark(self) -> int:
        """Number of events so far."""
        self._drain()
        return len(self.events)

    def _drain(self) -> None:
        while True:
            try:
                chunk = os.read(self._fifo, 65536)
            except BlockingIOError:
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                event = {**json.loads(line), "number": len(self.events), "t": time.monotonic()}
                self.events.append(event)
                self._watch(event["pid"])

    def _watch(self, pid: int) -> None:
        if pid not in self._pidfds:
            try:
                self._pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                return

    # -- the end ----------------------------------------------------------------------------------------------

    def wait_dead(self, pid: int, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a worker that has reported something has ended."""
        fd = self._pidfds.get(pid)
        if fd is not None:
            assert select.select([fd], [], [], timeout_s)[0], f"process {pid} is still there:\n{self._story()}"

    def alive(self) -> list[int]:
        """Workers that have reported something and still run."""
        self._drain()
        return [pid for pid, fd in self._pidfds.items() if not select.select([fd], [], [], 0)[0]]

    def close(self) -> None:
        """End everything and check that no worker outlives its agent."""
        orphans: list[int] = []
        try:
            for agent in self.agents:
                if agent.poll() is None:
                    agent.send_signal(signal.SIGCONT)
                    agent.kill()
                    agent.wait()
            for pid in self.alive():
                select.select([self._pidfds[pid]], [], [], 10)
        finally:
            for pid, fd in self._pidfds.items():
                if not select.select([fd], [], [], 0)[0]:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    orphans.append(pid)
                os.close(fd)
            os.close(self._fifo)
        assert not orphans, f"processes {orphans} outlived their agents"

    def _story(self) -> str:
        outputs = "\n".join(f"--- agent {n}\n{self.output(agent)[-3000:]}" for n, agent in enumerate(self.agents))
        return "\n".join(str(event) for event in self.events[-40:]) + "\n" + outputs


def _joined(event: Event, rank: int) -> bool:
    return event["event"] == "joined" and event["rank"] == rank
