"""A worker's side of the control plane: join, receive views, say how far it is, leave. Imports no torch."""

import collections
import contextlib
import os
import secrets
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Self

from elaswave.clock import Deadline
from elaswave.coordination.delta import apply_delta
from elaswave.coordination.life import Life
from elaswave.coordination.protocol import (
    VERSION,
    Activate,
    Bye,
    Depart,
    Fence,
    Finish,
    FullView,
    Join,
    LeaveSoon,
    Message,
    Pulse,
    Suspect,
    Turn,
    Turned,
    ViewDelta,
    WorkerHello,
    WorkerWelcome,
    is_id,
)
from elaswave.coordination.secret import job_secret
from elaswave.coordination.stream import Closed, Stream
from elaswave.coordination.wire import Channel, pack
from elaswave.errors import (
    DeadlineExceeded,
    Dismissed,
    ElasWaveError,
    Fenced,
    LaunchError,
    ProtocolError,
    RefusedError,
)
from elaswave.topology import View

NODE_SOCKET = "ELASWAVE_NODE_SOCKET"
RUN_ID = "ELASWAVE_RUN_ID"
NODE_ID = "ELASWAVE_NODE_ID"
WORKER_ID = "ELASWAVE_WORKER_ID"
SPARE = "ELASWAVE_SPARE"
CONTEXT = b"worker"
SPARE_LOOK_S = 1.0
CLOSE_TIMEOUT_S = 1.0

_TURNED: dict[Turn, type[ElasWaveError]] = {
    Turn.REFUSED: RefusedError,
    Turn.DISMISSED: Dismissed,
    Turn.ENDED: LaunchError,
}


class Agent:
    """This process's connection to its node. To be used by the main thread only.

    Attributes:
        worker_id, node_id, host_id: who and where this process is.
        rank: its slot, once it has joined.
        leaving: the node asked for a planned leave at the next step boundary.
        on_view: called with every new view, from within `on_readable` or `wait_view`.
    """

    def __init__(self, stream: Stream, life: Life, worker_id: str) -> None:
        self._stream, self._life = stream, life
        self.worker_id = worker_id
        self.node_id = self.host_id = ""
        self.rank = -1
        self.local_rank: int | None = None
        self.leaving = False
        self.on_view: Callable[[View], None] | None = None
        self._view: View | None = None
        self._verdict: ElasWaveError | None = None
        self._inbox: collections.deque[Message] = collections.deque()
        self._pulse = Pulse()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._heartbeats: threading.Thread | None = None

    # -- connecting --------------------------------------------------------------------------------------------

    @classmethod
    def connect(cls, *, deadline: Deadline, secret: bytes | None = None) -> Self:
        """Introduce this process to its node; the environment says where that is.

        Args:
            secret: of the job; by default what `job_secret` finds.

        Raises:
            LaunchError: the process was not started by a node's launcher, or the node is gone.
            AuthenticationError: the node does not know the secret.
            RefusedError: the node speaks another version, or knows this worker id already.
            DeadlineExceeded: the node did not answer in time.
        """
        path = os.environ.get(NODE_SOCKET, "")
        if not path:
            raise LaunchError(f"{NODE_SOCKET} is not set: start this with torchrun --rdzv-backend=elaswave")
        worker_id = os.environ.get(WORKER_ID, "")
        worker_id = worker_id if is_id(worker_id) else secrets.token_hex(6)
        secret = job_secret(os.environ.get(RUN_ID, "")) if secret is None else secret
        life = Life()
        stream = Stream(_dial(path), Channel(secret, initiator=True, context=CONTEXT))
        agent = cls(stream, life, worker_id)
        try:
            agent._introduce(deadline)
        except BaseException:
            agent.close()
            raise
        return agent

    def _introduce(self, deadline: Deadline) -> None:
        while not self._stream.channel.ready:
            self._pump(deadline, "prove that it knows the secret")
        spare = os.environ.get(SPARE) == "1"
        local_rank = os.environ.get("LOCAL_RANK", "")
        hello = WorkerHello(
            version=VERSION,
            worker_id=self.worker_id,
            local_rank=int(local_rank) if local_rank.isdigit() and not spare else None,
            spare=spare,
        )
        self._flush_all(deadline)
        socket.send_fds(self._stream.socket, [pack(hello)], [self._life.descriptor])
        while not self.node_id:
            self._pump(deadline, "welcome this worker")

    def _flush_all(self, deadline: Deadline) -> None:
        """The descriptor must travel with the first byte of the hello, behind everything else."""
        while self._stream.unsent:
            with self._lock:
                self._stream.flush()
            if self._stream.unsent:
                self._wait(deadline, select.POLLOUT, "read what it is sent")

    def _pump(self, deadline: Deadline, what: str) -> None:
        """Wait for something to arrive and take it in."""
        with self._lock:
            self._send_queued()
        if not self._inbox:
            self._wait(deadline, select.POLLIN, what)
        self.on_readable()

    def _wait(self, deadline: Deadline, events: int, what: str) -> None:
        poll = select.poll()
        poll.register(self._stream.fileno(), events)
        if not poll.poll(deadline.left_s() * 1000):
            raise DeadlineExceeded(f"the node did not {what} within {deadline.timeout_s:g} s")

    def _send_queued(self) -> None:
        try:
            self._stream.flush()
        except Closed:
            pass  # reading tells why

    # -- joining -----------------------------------------------------------------------------------------------

    def join(
        self, *, address: Mapping[str, object], config_digest: str, versions: Mapping[str, str], deadline: Deadline
    ) -> View:
        """Offer this worker as a member; returns the first view that contains it.

        A spare waits here, without a deadline, until it is needed.

        Args:
            address: how other workers reach this one; at most 4096 characters as JSON.
            config_digest, versions: must be those of the other workers.

        Raises:
            RefusedError: configuration or versions differ from the job's.
            Dismissed: the job is done and needs nobody any more.
            LaunchError: the job gave up.
            Fenced: the node declared this worker dead.
            DeadlineExceeded: the job did not form, or did not take this worker in, in time.
        """
        self._post(Join(address=dict(address), config_digest=config_digest, versions=dict(versions)))
        spare = os.environ.get(SPARE) == "1"
        if spare:
            self._wait_activated()
            deadline = Deadline(deadline.timeout_s)
        while self._view is None:
            self._pump(deadline, "report a view with this worker in it")
        return self._view

    def _wait_activated(self) -> None:
        while self.local_rank is None:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLIN)
            if poll.poll(SPARE_LOOK_S * 1000):
                self.on_readable()

    @property
    def newest(self) -> View:
        """The newest view that was received; only after `join`."""
        if self._view is None:
            raise RuntimeError("no view before join()")
        return self._view

    # -- receiving ---------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when `on_readable` has something to do."""
        return self._stream.fileno()

    def on_readable(self) -> None:
        """Take in what has arrived, without blocking.

        Raises:
            Fenced: this worker is no longer a member, or its node is gone.
            RefusedError, Dismissed, LaunchError: see `join`.
        """
        try:
            self._inbox.extend(self._stream.receive())
        except Closed as closed:
            self._verdict = self._verdict or Fenced(f"the node is gone: {closed}")
        while self._inbox:  # what `on_view` may leave here by raising is taken in by the next call
            self._take(self._inbox.popleft())
        if self._verdict is not None:
            raise self._verdict
        if self._stream.unsent:
            with self._lock:
                self._send_queued()

    def _take(self, message: Message) -> None:
        match message:
            case FullView(view=view):
                self._new_view(view)
            case ViewDelta():
                if self._view is None:
                    raise ProtocolError("a delta before any view")
                self._new_view(apply_delta(self._view, message))
            case WorkerWelcome():
                self.node_id, self.host_id = message.node_id, message.host_id
                self._start_heartbeats(message.heartbeat_s)
            case Activate(local_rank=local_rank):
                self.local_rank = local_rank
            case LeaveSoon():
                self.leaving = True
            case Fence(reason=reason):
                self._verdict = Fenced(reason)
            case Turned(turn=turn, reason=reason):
                self._verdict = _TURNED[turn](reason)
            case _:
                pass

    def _new_view(self, view: View) -> None:
        if self._view is not None and view.epoch <= self._view.epoch:
            return
        rank = view.rank_of(self.worker_id)
        if rank is not None:
            self.rank = rank
        self._view = view
        if self.on_view is not None:
            self.on_view(view)

    def wait_view(self, newer_than: int, deadline: Deadline) -> View:
        """The newest view, once it has an epoch above `newer_than`.

        Raises:
            DeadlineExceeded: there was none in time.
            Fenced, LaunchError: see `on_readable`.
        """
        while self._view is None or self._view.epoch <= newer_than:
            self._pump(deadline, f"report a view newer than {newer_than}")
        return self._view

    # -- saying ------------------------------------------------------------------------------------------------

    def progress(self, step: int, stage: str) -> None:
        """Say how far this worker is; rides on the next heartbeat."""
        self._pulse = Pulse(step=step, stage=stage)

    def suspect(self, worker_id: str, why: str) -> None:
        """Say that another worker is not heard from; its node will look at it."""
        self._post(Suspect(worker_id=worker_id, why=why[:256]))

    def depart(self) -> None:
        """The planned leave is complete: the next view does not contain this worker, and interrupts nobody."""
        self._post(Depart())

    def finish(self) -> None:
        """The last step is done: nobody is replaced any more."""
        self._post(Finish())

    def _post(self, message: Message) -> None:
        with self._lock:
            self._stream.channel.send(message)
            self._send_queued()

    def close(self) -> None:
        """Say goodbye and let go of the life mutex. What was posted before is delivered first."""
        self._stopping.set()
        if self._stream.fileno() >= 0:
            if self._stream.channel.ready:
                self._post(Bye())
                with contextlib.suppress(ElasWaveError, Closed):
                    self._flush_all(Deadline(CLOSE_TIMEOUT_S))
            with self._lock:
                self._stream.close()
        self._life.release()

    # -- heartbeats --------------------------------------------------------------------------------------------

    def _start_heartbeats(self, interval_s: float) -> None:
        if self._heartbeats is None:
            self._heartbeats = threading.Thread(
                target=self._beat, args=(interval_s,), name="elaswave-heartbeat", daemon=True
            )
            self._heartbeats.start()

    def _beat(self, interval_s: float) -> None:
        """Runs in a thread of its own, so that long computations do not look like death."""
        while not self._stopping.wait(interval_s):
            with self._lock:
                if self._stream.fileno() < 0:
                    return
                if not self._stream.unsent:
                    self._stream.channel.send(self._pulse)
                self._send_queued()


def _dial(path: str) -> socket.socket:
    """Connect to the node's socket; a leading @ stands for the abstract namespace."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        sock.close()
        raise LaunchError(
            f"cannot reach the node's service at {path}: {error.strerror}; is its agent alive?"
        ) from error
    return sock
