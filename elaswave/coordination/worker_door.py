"""Where a node's workers connect: their streams, their processes, and the watch over their life mutexes."""

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from elaswave.clock import Clock
from elaswave.coordination import processes
from elaswave.coordination.agent import CONTEXT
from elaswave.coordination.detector import Evidence
from elaswave.coordination.dialing import BACKLOG
from elaswave.coordination.life import Watch
from elaswave.coordination.node_core import NodeCore
from elaswave.coordination.protocol import Message, Turn, Turned, WorkerHello, WorkerWelcome, check_version
from elaswave.coordination.reactor import Reactor
from elaswave.coordination.stream import Stream, credentials
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.wire import Channel
from elaswave.errors import ProtocolError, RefusedError
from elaswave.events import Kind, Recorder

PROOF_TIMEOUT_S = 5.0
"""How long a connection may take to prove that it knows the secret and to introduce itself."""
STRANGERS_MAX = 256
"""Connections that have not introduced themselves."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A connection; `worker_id` is empty until it has introduced itself."""

    stream: Stream
    pid: int
    since: float
    worker_id: str = ""
    process: int | None = None
    watch: Watch | None = None


class WorkerDoor:
    """All connections of workers.

    Args:
        core: decides; is told of every message and every sign of death.
        on_kill: ends a worker's process; by default SIGKILL to the process alone.

    Attributes:
        address: where workers connect; the leading @ stands for the abstract namespace, which leaves no file behind,
            whatever ends this process.
    """

    def __init__(
        self,
        *,
        core: NodeCore,
        reactor: Reactor,
        secret: bytes,
        timeouts: Timeouts,
        recorder: Recorder,
        on_kill: Callable[[int], None] | None,
        clock: Clock,
    ) -> None:
        self._core, self._reactor, self._secret = core, reactor, secret
        self._timeouts, self._recorder, self._on_kill, self._clock = timeouts, recorder, on_kill, clock
        self._workers: dict[str, _Worker] = {}
        self._strangers: set[_Worker] = set()
        name = f"elaswave-{secrets.token_hex(12)}"
        self.address = "@" + name
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind("\0" + name)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        reactor.listen(self._listener, self._meet)

    # -- connections -------------------------------------------------------------------------------------------

    def _meet(self, sock: socket.socket) -> None:
        who = credentials(sock)
        if who.uid not in (os.getuid(), 0) or len(self._strangers) >= STRANGERS_MAX:
            sock.close()
            return
        stream = Stream(sock, Channel(self._secret, initiator=False, context=CONTEXT), takes_descriptors=True)
        worker = _Worker(stream, who.pid, self._clock.monotonic())
        self._strangers.add(worker)
        self._reactor.add(stream, lambda: self._read(worker))

    def close_strangers(self, now: float) -> None:
        """End connections that do not introduce themselves."""
        for worker in [w for w in self._strangers if now - w.since > PROOF_TIMEOUT_S]:
            self._close(worker)

    def close(self) -> None:
        for worker in [*self._workers.values(), *self._strangers]:
            self._close(worker)
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()

    def _close(self, worker: _Worker) -> None:
        self._strangers.discard(worker)
        self._workers.pop(worker.worker_id, None)
        if worker.watch is not None:
            worker.watch.cancel()
        if worker.process is not None:
            self._reactor.unwatch(worker.process)
            os.close(worker.process)
            worker.process = None
        self._reactor.close_stream(worker.stream)

    # -- messages ----------------------------------------------------------------------------------------------

    def _read(self, worker: _Worker) -> None:
        """Take in everything a worker has said, and notice when it hangs up."""
        if worker.stream.fileno() < 0:
            return
        messages, error = self._reactor.receive(worker.stream)
        for message in messages:
            try:
                self._said(worker, message)
            except ProtocolError as wrong:
                error = wrong
                break
        if error is None:
            return
        worker_id = worker.worker_id
        if isinstance(error, ProtocolError):
            self._recorder.emit(Kind.ERROR, message=f"worker {worker_id or worker.pid}: {error}")
        self._close(worker)
        if worker_id:
            self._sign(worker_id, Evidence.HANGUP)

    def _said(self, worker: _Worker, message: Message) -> None:
        now = self._clock.monotonic()
        if worker.worker_id:
            self._core.workers.said(now, worker.worker_id, message)
            self._core.settle(now)
        elif isinstance(message, WorkerHello):
            self._greet(now, worker, message)
        else:
            raise ProtocolError(f"a {type(message).__name__} before any introduction")

    def _greet(self, now: float, worker: _Worker, hello: WorkerHello) -> None:
        if not worker.stream.descriptors:
            raise ProtocolError("a hello without a life mutex")
        descriptor = worker.stream.descriptors.pop()
        worker.watch = Watch(descriptor, lambda: self._reactor.notify(lambda: self._abandoned(worker)))
        reason = self._objection(now, worker, hello)
        if reason is not None:
            self._reactor.send(worker.stream, Turned(turn=Turn.REFUSED, reason=reason))
            self._close(worker)
            return
        worker.worker_id = hello.worker_id
        self._strangers.discard(worker)
        self._workers[hello.worker_id] = worker
        worker.process = processes.open_process(worker.pid)
        if worker.process is not None:
            self._reactor.watch(worker.process, lambda: self._exited(worker))
        identity = self._core.identity
        welcome = WorkerWelcome(
            node_id=identity.node_id,
            host_id=identity.host_id,
            heartbeat_s=self._timeouts.heartbeat_s,
            suspicion_s=self._timeouts.suspicion_s,
        )
        self._reactor.send(worker.stream, welcome)

    def _objection(self, now: float, worker: _Worker, hello: WorkerHello) -> str | None:
        """Why this worker cannot be taken in; None when it was."""
        try:
            check_version(hello.version, f"worker {hello.worker_id}")
        except RefusedError as error:
            return str(error)
        if worker.pid <= 0:
            return f"worker {hello.worker_id} lives in another pid namespace than its node, which could not end it"
        if hello.worker_id in self._workers:
            return f"worker {hello.worker_id} is connected already; a child process must not inherit its environment"
        return self._core.workers.connected(now, hello, worker.pid)

    def tell(self, worker_id: str, message: Message) -> None:
        """Send a message; a worker that does not read counts as one that hung up."""
        worker = self._workers.get(worker_id)
        if worker is not None and not self._reactor.send(worker.stream, message):
            self._close(worker)
            self._sign(worker_id, Evidence.HANGUP)

    # -- deaths ------------------------------------------------------------------------------------------------

    def _abandoned(self, worker: _Worker) -> None:
        """The owner of a life mutex died without letting go."""
        if worker.worker_id and worker.stream.fileno() >= 0:
            self._read(worker)  # what it said before counts
            self._sign(worker.worker_id, Evidence.MUTEX)

    def _exited(self, worker: _Worker) -> None:
        self._read(worker)
        self._close(worker)
        self._sign(worker.worker_id, Evidence.EXIT)

    def _sign(self, worker_id: str, evidence: Evidence) -> None:
        now = self._clock.monotonic()
        self._core.workers.sign(now, worker_id, evidence)
        self._core.settle(now)

    def kill(self, worker_id: str, pid: int) -> None:
        """End a process, unless it has ended: its id may be somebody else's by now."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.process is not None:
            self._end_process(worker.process, pid)
            return
        opened = processes.open_process(pid)
        if opened is not None:
            try:
                self._end_process(opened, pid)
            finally:
                os.close(opened)

    def _end_process(self, process: int, pid: int) -> None:
        if self._on_kill is not None:
            self._on_kill(pid)
        else:
            processes.kill(process)
