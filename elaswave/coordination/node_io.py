"""The loop of a node's service: one epoll over listeners, workers, other nodes and processes."""

import collections
import contextlib
import os
import secrets
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from elaswave.clock import Clock
from elaswave.coordination import dialing, processes
from elaswave.coordination.agent import CONTEXT as WORKER_CONTEXT
from elaswave.coordination.coordinator import Published
from elaswave.coordination.detector import Evidence
from elaswave.coordination.failover import Dial
from elaswave.coordination.life import Watch
from elaswave.coordination.node_core import (
    Action,
    CloseLink,
    ClosePeer,
    Ended,
    NodeCore,
    ToPeer,
    ToPrimary,
    WatchNode,
)
from elaswave.coordination.node_workers import Complain, Died, Kill, SpareReady, SpareUsed, ToWorker
from elaswave.coordination.protocol import (
    Address,
    Claim,
    Message,
    NodeEntry,
    Turn,
    Turned,
    WorkerHello,
    WorkerWelcome,
    check_version,
)
from elaswave.coordination.stream import Closed, Stream, credentials, tune_tcp
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.wire import Channel
from elaswave.errors import ElasWaveError, ProtocolError, RefusedError
from elaswave.events import Kind, Recorder

TICKS_PER_HEARTBEAT = 4
PROOF_TIMEOUT_S = 5.0
"""How long a connection may take to prove that it knows the secret and to introduce itself."""
STRANGERS_MAX = 256
"""Connections that have not introduced themselves."""
PEERS_MAX = 16_384
READS_MAX = 16
"""Reads from one connection before the others get their turn."""


@dataclass(slots=True, eq=False)
class _Worker:
    """Connection of a worker; `worker_id` is empty until it has introduced itself."""

    stream: Stream
    pid: int
    since: float
    worker_id: str = ""
    process: int | None = None
    watch: Watch | None = None


@dataclass(slots=True, eq=False)
class _Peer:
    """Connection that another node has made to us."""

    key: int
    stream: Stream
    host: str
    since: float
    introduced: bool = False


@dataclass(slots=True, eq=False)
class _Link:
    """Our connection to the primary, or to who may be it."""

    address: Address
    since: float
    stream: Stream | None = None
    introduced: bool = False
    answered: bool = False


class NodeIO:
    """Sockets and processes of one node; `core` decides.

    Attributes:
        address: where other nodes reach this one.
        seed_index: which seed that is; None when it is none.
        worker_address: where workers connect; a leading @ stands for the abstract namespace.
    """

    core: NodeCore

    def __init__(
        self,
        *,
        secret: bytes,
        seeds: tuple[Address, ...],
        bind: str,
        timeouts: Timeouts,
        recorder: Recorder,
        on_kill: Callable[[int], None] | None,
        clock: Clock,
    ) -> None:
        self._secret, self._timeouts, self._recorder, self._clock = secret, timeouts, recorder, clock
        self._on_kill = on_kill
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Stream] = {}
        self._workers: dict[str, _Worker] = {}
        self._strangers: set[_Worker] = set()
        self._peers: dict[int, _Peer] = {}
        self._next_peer = 0
        self._link: _Link | None = None
        self._notices: collections.deque[Callable[[], None]] = collections.deque()
        self._seeds_held: set[Address] = set()
        self._claim_at = 0.0
        self._claiming = threading.Lock()
        self._waking = threading.Lock()
        self._tick_at = 0.0
        self._closed = False
        listener, self.address, self.seed_index = dialing.open_listener(seeds, bind)
        self._listeners = [listener]
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listen(listener)
        self._unix, self.worker_address = _open_unix()
        self._watch_fd(self._unix.fileno(), lambda: self._accept(self._unix, self._meet_worker))
        self._watch_fd(self._wakeup, self._drain_wakeup)

    # -- the loop ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """End the current wait; from any thread."""
        with self._waking:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)

    def _drain_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)

    def _notify(self, act: Callable[[], None]) -> None:
        """Have the loop call `act`; from any thread."""
        with self._waking:
            if not self._closed:
                self._notices.append(act)
                os.eventfd_write(self._wakeup, 1)
                return
        act()  # everything is closed: it only has to let go of what it brought

    def run_once(self) -> None:
        """Wait for something to happen, at most until something is due, and take it in."""
        for descriptor, events in self._epoll.poll(self._patience_s()):
            if events & select.EPOLLOUT and descriptor in self._writers:
                self._flush(self._writers[descriptor])
            handler = self._handlers.get(descriptor)
            if handler is not None and events & ~select.EPOLLOUT:
                handler()
        while self._notices:
            self._notices.popleft()()
        now = self._clock.monotonic()
        due = self.core.next_deadline()
        if now >= self._tick_at or (due is not None and now >= due):
            self._tick_at = now + self._timeouts.heartbeat_s / TICKS_PER_HEARTBEAT
            self._close_strangers(now)
            self._time_out_dial(now)
            self.core.tick(now)
            self._claim_seeds(now)
        self.carry_out()

    def _patience_s(self) -> float:
        now = self._clock.monotonic()
        due = self.core.next_deadline()
        return max(0.0, (self._tick_at if due is None else min(due, self._tick_at)) - now)

    def _watch_fd(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._writers.pop(descriptor, None)
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Say goodbye and close everything."""
        self.core.goodbye(self._clock.monotonic())
        self.carry_out()
        with self._waking:
            self._closed = True
        for worker in [*self._workers.values(), *self._strangers]:
            self._close_worker(worker)
        for peer in list(self._peers.values()):
            self._close_stream(peer.stream)
        if self._link is not None and self._link.stream is not None:
            self._close_stream(self._link.stream)
        self._link = None
        while self._notices:
            self._notices.popleft()()
        for descriptor in list(self._handlers):
            self._unwatch(descriptor)
        for listener in [*self._listeners, self._unix]:
            listener.close()
        os.close(self._wakeup)
        self._epoll.close()

    # -- streams -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket, meet: Callable[[socket.socket], None]) -> None:
        for _ in range(READS_MAX):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            meet(sock)

    def _flush(self, stream: Stream) -> None:
        """Send what waits; an error shows when reading."""
        with contextlib.suppress(Closed):
            stream.flush()
        self._want_write(stream)

    def _want_write(self, stream: Stream) -> None:
        descriptor = stream.fileno()
        if descriptor not in self._handlers or stream.unsent == (descriptor in self._writers):
            return
        if stream.unsent:
            self._writers[descriptor] = stream
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)
        else:
            del self._writers[descriptor]
            self._epoll.modify(descriptor, select.EPOLLIN)

    def _send(self, stream: Stream, message: Message) -> bool:
        """Whether the stream is still good."""
        try:
            stream.send(message)
        except (Closed, ProtocolError):
            return False
        self._want_write(stream)
        return True

    def _receive(self, stream: Stream) -> tuple[list[Message], Exception | None]:
        """What has arrived, and what is wrong with the stream."""
        messages: list[Message] = []
        for _ in range(READS_MAX):
            try:
                more = stream.receive()
            except (Closed, ProtocolError) as error:
                return messages, error
            if stream.unsent:
                self._flush(stream)
            if not more:
                break
            messages += more
        return messages, None

    def _close_stream(self, stream: Stream) -> None:
        self._unwatch(stream.fileno())
        with contextlib.suppress(Closed):
            stream.flush()
        stream.close()

    def _close_strangers(self, now: float) -> None:
        """End connections that do not introduce themselves."""
        for worker in [w for w in self._strangers if now - w.since > PROOF_TIMEOUT_S]:
            self._close_worker(worker)
        for peer in [p for p in self._peers.values() if not p.introduced and now - p.since > PROOF_TIMEOUT_S]:
            self._close_peer(peer)

    # -- workers -----------------------------------------------------------------------------------------------

    def _meet_worker(self, sock: socket.socket) -> None:
        who = credentials(sock)
        if who.uid not in (os.getuid(), 0) or len(self._strangers) >= STRANGERS_MAX:
            sock.close()
            return
        channel = Channel(self._secret, initiator=False, context=WORKER_CONTEXT)
        worker = _Worker(Stream(sock, channel, takes_descriptors=True), who.pid, self._clock.monotonic())
        self._strangers.add(worker)
        self._watch_fd(worker.stream.fileno(), lambda: self._read_worker(worker))
        self._flush(worker.stream)

    def _read_worker(self, worker: _Worker) -> None:
        """Take in everything a worker has said, and notice when it hangs up."""
        if worker.stream.fileno() < 0:
            return
        messages, error = self._receive(worker.stream)
        for message in messages:
            try:
                self._worker_said(worker, message)
            except ProtocolError as wrong:
                error = wrong
                break
        if error is None:
            return
        worker_id = worker.worker_id
        if isinstance(error, ProtocolError):
            self._recorder.emit(Kind.ERROR, message=f"worker {worker_id or worker.pid}: {error}")
        self._close_worker(worker)
        if worker_id:
            self._sign(worker_id, Evidence.HANGUP)

    def _worker_said(self, worker: _Worker, message: Message) -> None:
        now = self._clock.monotonic()
        if worker.worker_id:
            self.core.workers.said(now, worker.worker_id, message)
            self.core.settle(now)
        elif isinstance(message, WorkerHello):
            self._greet_worker(now, worker, message)
        else:
            raise ProtocolError(f"a {type(message).__name__} before any introduction")

    def _greet_worker(self, now: float, worker: _Worker, hello: WorkerHello) -> None:
        if not worker.stream.descriptors:
            raise ProtocolError("a hello without a life mutex")
        watch = Watch(worker.stream.descriptors.pop(), lambda: self._notify(lambda: self._abandoned(worker)))
        worker.watch = watch
        try:
            check_version(hello.version, f"worker {hello.worker_id}")
            known = hello.worker_id in self._workers
            reason = "it is connected already" if known else self.core.workers.connected(now, hello, worker.pid)
        except RefusedError as error:
            reason = str(error)
        if reason is not None:
            self._send(worker.stream, Turned(turn=Turn.REFUSED, reason=reason))
            self._close_worker(worker)
            return
        worker.worker_id = hello.worker_id
        self._strangers.discard(worker)
        self._workers[hello.worker_id] = worker
        worker.process = processes.open_process(worker.pid)
        if worker.process is not None:
            self._watch_fd(worker.process, lambda: self._exited(worker))
        welcome = WorkerWelcome(
            node_id=self.core.identity.node_id,
            host_id=self.core.identity.host_id,
            heartbeat_s=self._timeouts.heartbeat_s,
            suspicion_s=self._timeouts.suspicion_s,
        )
        self._send(worker.stream, welcome)

    def _abandoned(self, worker: _Worker) -> None:
        """The owner of a life mutex died without letting go."""
        if worker.worker_id and worker.stream.fileno() >= 0:
            self._read_worker(worker)  # what it said before counts
            self._sign(worker.worker_id, Evidence.MUTEX)

    def _exited(self, worker: _Worker) -> None:
        self._read_worker(worker)
        self._close_worker(worker)
        self._sign(worker.worker_id, Evidence.EXIT)

    def _sign(self, worker_id: str, evidence: Evidence) -> None:
        now = self._clock.monotonic()
        self.core.workers.sign(now, worker_id, evidence)
        self.core.settle(now)

    def _close_worker(self, worker: _Worker) -> None:
        self._strangers.discard(worker)
        if worker.worker_id:
            self._workers.pop(worker.worker_id, None)
        if worker.watch is not None:
            worker.watch.cancel()
        if worker.process is not None:
            self._unwatch(worker.process)
            os.close(worker.process)
            worker.process = None
        if worker.stream.fileno() >= 0:
            self._close_stream(worker.stream)

    # -- other nodes -------------------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        self._watch_fd(listener.fileno(), lambda: self._accept(listener, self._meet_peer))

    def _meet_peer(self, sock: socket.socket) -> None:
        strangers = sum(not peer.introduced for peer in self._peers.values())
        if strangers >= STRANGERS_MAX or len(self._peers) >= PEERS_MAX:
            sock.close()
            return
        try:
            tune_tcp(sock, self._timeouts.suspicion_s)
            host = sock.getpeername()[0]
        except OSError:
            sock.close()
            return
        self._next_peer += 1
        channel = Channel(self._secret, initiator=False, context=dialing.CONTEXT)
        peer = _Peer(self._next_peer, Stream(sock, channel), host, self._clock.monotonic())
        self._peers[peer.key] = peer
        self._watch_fd(sock.fileno(), lambda: self._read_peer(peer))
        self._flush(peer.stream)

    def _read_peer(self, peer: _Peer) -> None:
        messages, error = self._receive(peer.stream)
        now = self._clock.monotonic()
        for message in messages:
            try:
                self.core.peer_said(now, peer.key, peer.host, message)
            except ProtocolError as wrong:
                error = wrong
                break
            peer.introduced = True
        if isinstance(error, ProtocolError):
            self._recorder.emit(Kind.ERROR, message=f"{peer.host}: {error}")
        if error is not None:
            self._close_peer(peer)

    def _close_peer(self, peer: _Peer) -> None:
        if self._peers.pop(peer.key, None) is not None:
            self._close_stream(peer.stream)
            self.core.peer_closed(self._clock.monotonic(), peer.key)

    # -- the way to the primary --------------------------------------------------------------------------------

    @property
    def _dial_timeout_s(self) -> float:
        return max(0.5, self._timeouts.suspicion_s / 2)

    def _dial(self, address: Address) -> None:
        """Connect in a thread: names may take long to resolve."""
        link = self._link = _Link(address, self._clock.monotonic())

        def connect() -> None:
            try:
                sock = dialing.dial(address, self._dial_timeout_s)
            except OSError as error:
                found = error
                self._notify(lambda: self._dial_failed(link, found))
            else:
                self._notify(lambda: self._dial_connected(link, sock))

        threading.Thread(target=connect, name="elaswave-dial", daemon=True).start()

    def _dial_connected(self, link: _Link, sock: socket.socket) -> None:
        if link is not self._link or self._closed:
            sock.close()
            return
        link.stream = Stream(sock, Channel(self._secret, initiator=True, context=dialing.CONTEXT))
        self._watch_fd(sock.fileno(), lambda: self._read_link(link))
        self._flush(link.stream)

    def _dial_failed(self, link: _Link, error: ElasWaveError | OSError) -> None:
        if link is self._link:
            self._drop_link()
            self.core.dial_failed(self._clock.monotonic(), error)

    def _time_out_dial(self, now: float) -> None:
        link = self._link
        if link is not None and not link.answered and now - link.since > 2 * self._dial_timeout_s:
            self._dial_failed(link, TimeoutError("it accepts connections but does not answer"))

    def _read_link(self, link: _Link) -> None:
        if link.stream is None or link is not self._link:
            return
        messages, error = self._receive(link.stream)
        now = self._clock.monotonic()
        if link.stream.channel.ready and not link.introduced:
            link.introduced = True
            self.core.dial_connected(now)
        for message in messages:
            link.answered = True
            self.core.primary_said(now, message)
        if error is None or link is not self._link:
            return
        if isinstance(error, ProtocolError) and not link.answered:
            self._dial_failed(link, error)
        else:
            self._drop_link()
            self.core.link_closed(now)

    def _drop_link(self) -> None:
        if self._link is not None and self._link.stream is not None:
            self._close_stream(self._link.stream)
        self._link = None

    def _watch_node(self, entry: NodeEntry) -> None:
        """Notice the end of another node's process on this host."""
        process = processes.open_process(entry.pid, entry.started_ticks)
        if process is None:
            return

        def ended() -> None:
            self._unwatch(process)
            os.close(process)
            self.core.node_gone(self._clock.monotonic(), entry.node_id)

        self._watch_fd(process, ended)

    # -- seeds -------------------------------------------------------------------------------------------------

    def _claim_seeds(self, now: float) -> None:
        """As the primary, be found at every seed: listen there, or tell whoever does."""
        if now < self._claim_at:
            return
        self._claim_at = now + self._timeouts.claim_s
        claims = [(seed, claim) for seed, claim in self.core.claims() if seed not in self._seeds_held]
        if claims and self._claiming.acquire(blocking=False):
            threading.Thread(target=self._claim, args=(claims,), name="elaswave-claim", daemon=True).start()

    def _claim(self, claims: list[tuple[Address, Claim]]) -> None:
        try:
            for seed, claim in claims:
                with contextlib.suppress(OSError, ProtocolError):
                    listener = dialing.listen_on_seed(seed)
                    if listener is not None:
                        self._notify(lambda seed=seed, listener=listener: self._hold_seed(seed, listener))
                    else:
                        dialing.tell(seed, self._secret, claim, self._dial_timeout_s)
        finally:
            self._claiming.release()

    def _hold_seed(self, seed: Address, listener: socket.socket) -> None:
        if self._closed:
            listener.close()
            return
        self._seeds_held.add(seed)
        self._listeners.append(listener)
        self._listen(listener)

    # -- what the core wants -----------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do everything the core has decided."""
        while self.core.actions:
            self._do(self.core.actions.pop(0))

    def _do(self, action: Action) -> None:
        match action:
            case ToWorker(worker_id, message):
                self._tell_worker(worker_id, message)
            case ToPeer(key, message):
                peer = self._peers.get(key)
                if peer is not None and not self._send(peer.stream, message):
                    self._close_peer(peer)
            case ClosePeer(key):
                peer = self._peers.pop(key, None)
                if peer is not None:
                    self._close_stream(peer.stream)
            case ToPrimary(message):
                if self._link is not None and self._link.stream is not None:
                    self._send(self._link.stream, message)
            case CloseLink():
                self._drop_link()
            case Dial(address):
                self._dial(address)
            case WatchNode(entry):
                self._watch_node(entry)
            case Kill():
                self._kill(action)
            case _:
                self._record(action)

    def _tell_worker(self, worker_id: str, message: Message) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and not self._send(worker.stream, message):
            self._close_worker(worker)
            self._sign(worker_id, Evidence.HANGUP)

    def _kill(self, action: Kill) -> None:
        worker = self._workers.get(action.worker_id)
        process = worker.process if worker is not None else None
        opened = processes.open_process(action.pid) if process is None else None
        if process is None and opened is None:
            return
        try:
            if self._on_kill is not None:
                self._on_kill(action.pid)
            else:
                processes.kill(process if process is not None else opened or 0)
        finally:
            if opened is not None:
                os.close(opened)

    def _record(self, action: Action) -> None:
        match action:
            case Died(worker_id, rank, pid, evidence):
                self._recorder.emit(Kind.DEATH, worker_id=worker_id, rank=rank, pid=pid, evidence=evidence)
            case SpareReady(worker_id, pid):
                self._recorder.emit(Kind.SPARE, what="ready", pid=pid, worker_id=worker_id)
            case SpareUsed(worker_id, pid, local_rank):
                self._recorder.emit(Kind.SPARE, what="activated", pid=pid, worker_id=worker_id, local_rank=local_rank)
            case Published(view):
                members = [[m.rank, m.worker_id, m.pid] for m in view.members]
                self._recorder.emit(
                    Kind.VIEW, epoch=view.epoch, members=members, reason=view.reason, paused=view.paused
                )
            case Ended(error):
                self._recorder.emit(Kind.ERROR, message=str(error))
            case Complain() | _:
                pass


def _open_unix() -> tuple[socket.socket, str]:
    """A listener in the abstract namespace, which leaves no file behind, whatever ends this process."""
    name = f"elaswave-{secrets.token_hex(12)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind("\0" + name)
    listener.listen(dialing.BACKLOG)
    listener.setblocking(False)
    return listener, "@" + name
