"""The torchrun agents of one `elaswave launch`: start them, wait for them, pass signals on, and tell how they ended."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from elaswave.clock import SYSTEM
from elaswave.coordination import bootstrap

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OF_ONE_PROCESS = (
    "ELASWAVE_NODE_SOCKET",
    "ELASWAVE_NODE_ID",
    "ELASWAVE_WORKER_ID",
    "ELASWAVE_SPARE",
    bootstrap.SUPERVISE,
    bootstrap.SUPERVISED,
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
)
"""Variables that describe the process they were made for; a job started inside another must not inherit them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What the agents are told.

    Attributes:
        run_id: name of the job; nodes and workers of one job share it.
        workers: workers of each agent.
        port: loopback port of the job's first node.
        log_dir: where torch keeps error files.
        command: module and arguments of the workers.
        environment: variables on top of this process's own.
    """

    run_id: str
    workers: tuple[int, ...]
    port: int
    log_dir: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


MAX_RESTARTS = 100_000
"""Of one rank; crash loops are slowed down and given up by their own rules."""
MONITOR_INTERVAL_S = 0.05
MAX_NODES = 1000
"""Upper end of torchrun's node range; more agents may join a running job."""


def share(workers: int, agents: int) -> tuple[int, ...]:
    """Workers per agent, as even as integers allow."""
    return tuple(workers // agents + (n < workers % agents) for n in range(agents))


def agent_command(job: JobSpec, index: int) -> list[str]:
    """Command line of one agent: plain torchrun, tied to the life of this process."""
    return [
        *(sys.executable, "-m", "elaswave.coordination.bootstrap", "torch.distributed.run"),
        f"--nnodes={len(job.workers)}:{MAX_NODES}",
        f"--nproc-per-node={job.workers[index]}",
        "--rdzv-backend=elaswave",
        f"--rdzv-endpoint=127.0.0.1:{job.port}",
        f"--rdzv-id={job.run_id}",
        f"--max-restarts={MAX_RESTARTS}",
        f"--monitor-interval={MONITOR_INTERVAL_S}",
        f"--log-dir={job.log_dir}",
        *("-m", *job.command),
    ]


class Agents:
    """The running agents.

    Args:
        job: what to start.
        leave_s: how long a planned leave may take before the agents are killed.
        say: shows a line to the user.
    """

    def __init__(self, job: JobSpec, leave_s: float, say: Callable[[str], None]) -> None:
        self._leave_s, self._say = leave_s, say
        self._stop_signal: int | None = None
        self._kill_at_s: float | None = None
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        environment = {name: value for name, value in os.environ.items() if name not in _OF_ONE_PROCESS}
        environment |= {**job.environment, bootstrap.PARENT_PID: str(os.getpid())}
        for index in range(len(job.workers)):
            process = subprocess.Popen(agent_command(job, index), env=environment, start_new_session=True)
            self._processes[os.pidfd_open(process.pid)] = process

    def wait(self, tick: Callable[[], None] | None = None, tick_s: float = 0.05) -> int:
        """Wait until all agents have ended.

        Args:
            tick: called every `tick_s` seconds, if given.

        Returns:
            0 when the agent that ended last saw the job finish, else its exit status; 128 plus the signal when this
            process was told to stop.
        """
        status = 0
        with self._signals() as wake:
            poller = select.poll()
            for fd in (*self._processes, wake):
                poller.register(fd, select.POLLIN)
            while self._processes:
                for fd, _ in poller.poll(self._patience_ms(tick_s if tick else None)):
                    if fd == wake:
                        os.read(wake, 64)
                        continue
                    poller.unregister(fd)
                    status = self._processes.pop(fd).wait()
                    os.close(fd)
                if self._kill_at_s is not None and SYSTEM.monotonic() >= self._kill_at_s:
                    self._send(signal.SIGKILL)
                if tick is not None:
                    tick()
        if self._stop_signal is not None:
            return 128 + self._stop_signal
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        """SIGKILL every agent that is left; the kernel ends their workers with them."""
        self._send(signal.SIGKILL)
        for fd, process in self._processes.items():
            process.wait()
            os.close(fd)
        self._processes.clear()

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Handle stopping signals while the agents run; yields a descriptor that is readable after one."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, self._on_signal) for number in _STOPPING}
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_signal is not None:
            self._kill_at_s = SYSTEM.monotonic()
            return
        self._stop_signal = number
        self._kill_at_s = SYSTEM.monotonic() + self._leave_s
        self._say(f"{signal.Signals(number).name}: stopping after the current step; once more to stop at once")
        self._send(signal.SIGTERM)

    def _patience_ms(self, tick_s: float | None) -> float | None:
        waits = [] if tick_s is None else [tick_s]
        if self._kill_at_s is not None:
            waits.append(max(0.0, self._kill_at_s - SYSTEM.monotonic()) + 0.01)
        return min(waits) * 1000 if waits else None

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)
