"""The service that every node runs: a thread that carries out, with sockets and processes, what `NodeCore` decides."""

import collections
import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from elaswave.clock import SYSTEM, Clock, Deadline
from elaswave.coordination import dialing, processes
from elaswave.coordination import run_folder as run_folders
from elaswave.coordination.coordinator_events import Policy
from elaswave.coordination.detector import Evidence
from elaswave.coordination.failover import Failover
from elaswave.coordination.identity import Identity
from elaswave.coordination.node_core import NodeCore
from elaswave.coordination.node_io import NodeIO
from elaswave.coordination.node_workers import NodeWorkers
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.witness import file_witness
from elaswave.errors import DeadlineExceeded, ElasWaveError, LaunchError
from elaswave.events import Recorder
from elaswave.topology import View

STOP_TIMEOUT_S = 5.0
INDEX_MARGIN_S = 5.0
"""The search for the primary ends with an error that says more than a timeout; it gets this long to come first."""
COMMANDS_MAX = 1024

T = TypeVar("T")


class NodeService:
    """The control plane's thread in one agent: looks after the local workers, and leads the job when it must.

    Args:
        run_id: name of the job.
        secret: what its processes share, see `secret.job_secret`.
        seeds: where nodes meet, as (host, port). Whoever finds a seed free on its own host listens there. A single
            seed with port 0 makes a job of one node.
        bind: address to listen on when no seed is ours.
        expected_workers: workers this node means to run.
        min_nodes: nodes without which the job does not form.
        run_folder: for the witness file; None when there is no storage that all nodes share.
        recorder: receives DEATH, SPARE and VIEW events, from the service's thread.
        on_kill: ends a worker's process; by default SIGKILL to the process alone.
        min_workers: the job pauses with fewer.

    Attributes:
        node_id: 12 hex digits, new for every service.
        host_id: the machine.
    """

    def __init__(
        self,
        *,
        run_id: str,
        secret: bytes,
        seeds: Sequence[tuple[str, int]],
        bind: str,
        expected_workers: int,
        min_nodes: int,
        run_folder: Path | None,
        timeouts: Timeouts,
        recorder: Recorder,
        on_kill: Callable[[int], None] | None = None,
        min_workers: int = 1,
        clock: Clock = SYSTEM,
    ) -> None:
        if not seeds:
            raise LaunchError("no seed: name at least one host:port in --rdzv-endpoint")
        self.node_id, self.host_id = secrets.token_hex(6), processes.host_id()
        self._run_id, self._secret, self._bind = run_id, secret, bind
        self._seeds = tuple((host, int(port)) for host, port in seeds)
        self._expected_workers = expected_workers
        self._policy = Policy(min_nodes=min_nodes, min_workers=min_workers)
        self._witness = file_witness(run_folder, self.node_id)
        self._timeouts, self._recorder, self._on_kill, self._clock = timeouts, recorder, on_kill, clock
        self._io: NodeIO | None = None
        self._address = ("", 0)
        self._thread = threading.Thread(target=self._run, name="elaswave-node", daemon=True)
        self._commands: collections.deque[Callable[[NodeCore, float], None]] = collections.deque()
        self._changed = threading.Condition()
        self._seen: tuple[View | None, int | None, ElasWaveError | None, bool, bool] = (None, None, None, False, False)
        self._stopping = self._stopped = False

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the listeners and start the thread.

        Raises:
            LaunchError: no address to listen on.
        """
        listener, address, seed_index = dialing.open_listener(self._seeds, self._bind)
        self._address = address
        self._io = NodeIO(
            core=self._make_core(address, seed_index),
            listener=listener,
            secret=self._secret,
            timeouts=self._timeouts,
            recorder=self._recorder,
            on_kill=self._on_kill,
            clock=self._clock,
        )
        self._thread.start()

    def _make_core(self, address: tuple[str, int], seed_index: int | None) -> NodeCore:
        now = self._clock.monotonic()
        return NodeCore(
            now=now,
            identity=Identity(
                node_id=self.node_id,
                host_id=self.host_id,
                pid=os.getpid(),
                started_ticks=processes.started_ticks(os.getpid()),
                host=address[0],
                port=address[1],
            ),
            policy=self._policy,
            timeouts=self._timeouts,
            workers=NodeWorkers(
                expected_workers=self._expected_workers, timeouts=self._timeouts, is_stopped=processes.is_stopped
            ),
            failover=Failover(
                now=now,
                node_id=self.node_id,
                own=address,
                seeds=self._seeds,
                seed_index=seed_index,
                timeouts=self._timeouts,
            ),
            lineage=secrets.token_hex(6),
            started=run_folders.stamp(self._clock.wall()),
            witness=self._witness,
        )

    def stop(self) -> None:
        """Say goodbye and end the thread. Workers that are still connected are fenced. May be called again."""
        if self._io is None:
            return
        self._stopping = True
        self._io.wake()
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        assert self._io is not None
        try:
            while not self._stopping:
                self._io.run_once()
                while self._commands:
                    self._commands.popleft()(self._io.core, self._clock.monotonic())
                self._io.carry_out()
                self._publish_state()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._io.close()
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """A bug in this thread must not leave the others waiting."""
        view, index, _, finished, left = self._seen
        with self._changed:
            self._seen = (view, index, LaunchError(f"the node's service broke: {error!r}"), finished, left)

    def _publish_state(self) -> None:
        """Let other threads see what has changed."""
        assert self._io is not None
        core = self._io.core
        seen = (core.view, core.index, core.error, core.finished, core.workers.left)
        if any(new is not old for new, old in zip(seen, self._seen, strict=True)):
            with self._changed:
                self._seen = seen
                self._changed.notify_all()

    def _command(self, run: Callable[[NodeCore, float], None]) -> None:
        """Have the service's thread call `run(core, now)`."""
        if self._io is None or self._stopped:
            return
        if len(self._commands) >= COMMANDS_MAX:
            raise LaunchError("the node's service does not keep up with its launcher")
        self._commands.append(run)
        self._io.wake()

    def _ask(self, run: Callable[[NodeCore, float], T]) -> T | None:
        """What `run(core, now)` returns in the service's thread; None when that does not run."""
        answer: list[T] = []

        def answer_it(core: NodeCore, now: float) -> None:
            found = run(core, now)
            core.settle(now)
            with self._changed:
                answer.append(found)
                self._changed.notify_all()

        self._command(answer_it)
        with self._changed:
            self._changed.wait_for(lambda: bool(answer) or self._stopped, timeout=STOP_TIMEOUT_S)
        return answer[0] if answer else None

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def view(self) -> View | None:
        """The newest view; None while the job forms."""
        return self._seen[0]

    @property
    def error(self) -> ElasWaveError | None:
        """Why this node is out of the job: LaunchError, AuthenticationError, RefusedError or Fenced; else None."""
        return self._seen[2]

    @property
    def finished(self) -> bool:
        """The last step is done, and no worker is left."""
        return self._seen[3]

    @property
    def node_index(self) -> int:
        """Position of this node in the job; waits until the primary has given it one.

        Raises:
            LaunchError, AuthenticationError, RefusedError: this node cannot be part of the job.
        """
        patience_s = self._timeouts.wait_for_workers_s + INDEX_MARGIN_S
        self._wait(lambda: self._seen[1] is not None, Deadline(patience_s), "find the primary")
        index = self._seen[1]
        assert index is not None
        return index

    @property
    def address(self) -> tuple[str, int]:
        """Where other nodes reach this one; only after `start`."""
        return self._address

    @property
    def job_started(self) -> str:
        """UTC time at which the job began, the same on all its nodes; waits and raises like `node_index`."""
        _ = self.node_index
        assert self._io is not None
        return self._io.core.started

    def worker_env(self) -> dict[str, str]:
        """What a worker's process must find in its environment."""
        assert self._io is not None
        return {
            "ELASWAVE_NODE_SOCKET": self._io.worker_address,
            "ELASWAVE_RUN_ID": self._run_id,
            "ELASWAVE_NODE_ID": self.node_id,
        }

    def progress(self) -> dict[str, tuple[int, str]]:
        """Step and stage of each local worker, by worker id, as of its last heartbeat."""
        found = self._ask(lambda core, now: core.workers.progress())
        return {worker_id: (pulse.step, pulse.stage) for worker_id, pulse in (found or {}).items()}

    def _wait(self, done: Callable[[], bool], deadline: Deadline, what: str) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: done() or self._seen[2] is not None or self._stopped, timeout=deadline.left_s()
            )
            if done():
                return
            if self._seen[2] is not None:
                raise self._seen[2]
        if self._stopped:
            raise LaunchError(f"the node's service was stopped before it could {what}")
        raise DeadlineExceeded(f"could not {what} within {deadline.timeout_s:g} s")

    def wait_formed(self, deadline: Deadline) -> View:
        """The first view, or a later one.

        Raises:
            DeadlineExceeded: the job has not formed in time.
            LaunchError, AuthenticationError, RefusedError, Fenced: this node is out of the job.
        """
        self._wait(lambda: self._seen[0] is not None, deadline, "form the job")
        view = self._seen[0]
        assert view is not None
        return view

    def wait_finished(self, deadline: Deadline) -> None:
        """Return when the last step is done and no worker is left; raises like `wait_formed`."""
        self._wait(lambda: self._seen[3], deadline, "see the end of the job")

    # -- the launcher ------------------------------------------------------------------------------------------

    def expect(self, worker_id: str, local_rank: int, pid: int) -> None:
        """A process was started that will introduce itself; it is killed when it takes too long, or is stopped."""
        self._command(lambda core, now: core.workers.expect(now, worker_id, local_rank, pid))

    def forget(self, worker_id: str) -> None:
        """A process has ended, as its parent knows for sure."""

        def run(core: NodeCore, now: float) -> None:
            core.workers.sign(now, worker_id, Evidence.LAUNCHER)
            core.settle(now)

        self._command(run)

    def spare_pid_for(self, local_rank: int) -> tuple[int, str] | None:
        """The spare that has taken the place of the process that died, as (pid, worker id); None when there is none.

        To be asked once per process that has ended; a spare is put in place now if that has not happened yet.
        """
        return self._ask(lambda core, now: core.workers.spare_for(now, local_rank))

    def leave(self, deadline: Deadline) -> None:
        """Planned leave: every local worker is asked to go at its next step boundary; the rest is killed at the end."""
        asked = threading.Event()

        def run(core: NodeCore, now: float) -> None:
            core.workers.leave(now)
            core.settle(now)
            asked.set()

        self._command(run)
        with contextlib.suppress(ElasWaveError):
            self._wait(lambda: asked.is_set() and self._seen[4], deadline, "leave")
            return
        self._command(lambda core, now: core.workers.kill_rest("it did not leave in time"))
