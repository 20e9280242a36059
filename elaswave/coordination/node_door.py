"""Connections between nodes: those that others make to us, the one we make to the primary, and seeds that moved."""

import contextlib
import os
import socket
import threading
from dataclasses import dataclass

from elaswave.clock import Clock
from elaswave.coordination import dialing, processes
from elaswave.coordination.node_core import NodeCore
from elaswave.coordination.protocol import Address, Claim, Message, NodeEntry
from elaswave.coordination.reactor import Reactor
from elaswave.coordination.stream import Stream, tune_tcp
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.wire import Channel
from elaswave.coordination.worker_door import PROOF_TIMEOUT_S, STRANGERS_MAX
from elaswave.errors import ElasWaveError, ProtocolError
from elaswave.events import Kind, Recorder

PEERS_MAX = 16_384


@dataclass(slots=True, eq=False)
class _Peer:
    """A connection that somebody has made to us."""

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


class NodeDoor:
    """All connections with other nodes, and the watch over the processes of those on this host.

    Args:
        listener: where other nodes connect; owned by this object.
        core: decides; is told of every message.
    """

    def __init__(
        self,
        *,
        core: NodeCore,
        listener: socket.socket,
        reactor: Reactor,
        secret: bytes,
        timeouts: Timeouts,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._core, self._reactor, self._secret = core, reactor, secret
        self._timeouts, self._recorder, self._clock = timeouts, recorder, clock
        self._listeners: list[socket.socket] = []
        self._peers: dict[int, _Peer] = {}
        self._next_peer = 0
        self._link: _Link | None = None
        self._processes: set[int] = set()
        self._seeds_held: set[Address] = set()
        self._claim_at = 0.0
        self._claiming = threading.Lock()
        self._dial_timeout_s = max(0.5, timeouts.suspicion_s / 2)
        self._listen(listener)

    def close(self) -> None:
        for peer in list(self._peers.values()):
            self._reactor.close_stream(peer.stream)
        self._peers.clear()
        self.drop_link()
        for process in self._processes:
            self._reactor.unwatch(process)
            os.close(process)
        self._processes.clear()
        for listener in self._listeners:
            self._reactor.unwatch(listener.fileno())
            listener.close()

    def tick(self, now: float) -> None:
        """Give up on those that do not answer, and be found at every seed."""
        for peer in [p for p in self._peers.values() if not p.introduced and now - p.since > PROOF_TIMEOUT_S]:
            self._close_peer(peer)
        link = self._link
        if link is not None and not link.answered and now - link.since > 2 * self._dial_timeout_s:
            self._dial_failed(link, TimeoutError("it accepts connections but does not answer"))
        if now >= self._claim_at:
            self._claim_at = now + self._timeouts.claim_s
            self._claim_seeds()

    # -- those who come to us ----------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        self._reactor.listen(listener, self._meet)

    def _meet(self, sock: socket.socket) -> None:
        strangers = sum(not peer.introduced for peer in self._peers.values())
        try:
            tune_tcp(sock, self._timeouts.suspicion_s)
            host = sock.getpeername()[0]
        except OSError:
            host = ""
        if not host or strangers >= STRANGERS_MAX or len(self._peers) >= PEERS_MAX:
            sock.close()
            return
        self._next_peer += 1
        stream = Stream(sock, Channel(self._secret, initiator=False, context=dialing.CONTEXT))
        peer = self._peers[self._next_peer] = _Peer(self._next_peer, stream, host, self._clock.monotonic())
        self._reactor.add(stream, lambda: self._read_peer(peer))

    def _read_peer(self, peer: _Peer) -> None:
        messages, error = self._reactor.receive(peer.stream)
        now = self._clock.monotonic()
        for message in messages:
            try:
                self._core.peer_said(now, peer.key, peer.host, message)
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
            self._reactor.close_stream(peer.stream)
            self._core.peer_closed(self._clock.monotonic(), peer.key)

    def tell_peer(self, key: int, message: Message) -> None:
        peer = self._peers.get(key)
        if peer is not None and not self._reactor.send(peer.stream, message):
            self._close_peer(peer)

    def close_peer(self, key: int) -> None:
        """Close without telling the core, which wants it."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._reactor.close_stream(peer.stream)

    # -- the way to the primary --------------------------------------------------------------------------------

    def dial(self, address: Address) -> None:
        """Connect, in a thread: names may take long to resolve."""
        link = self._link = _Link(address, self._clock.monotonic())

        def connect() -> None:
            try:
                sock = dialing.dial(address, self._dial_timeout_s)
            except OSError as error:
                found = error
                self._reactor.notify(lambda: self._dial_failed(link, found))
            else:
                self._reactor.notify(lambda: self._dial_connected(link, sock))

        threading.Thread(target=connect, name="elaswave-dial", daemon=True).start()

    def _dial_connected(self, link: _Link, sock: socket.socket) -> None:
        if link is not self._link or self._reactor.closed:
            sock.close()
            return
        link.stream = Stream(sock, Channel(self._secret, initiator=True, context=dialing.CONTEXT))
        self._reactor.add(link.stream, lambda: self._read_link(link))

    def _dial_failed(self, link: _Link, error: ElasWaveError | OSError) -> None:
        if link is self._link:
            self.drop_link()
            self._core.dial_failed(self._clock.monotonic(), error)

    def _read_link(self, link: _Link) -> None:
        if link.stream is None or link is not self._link:
            return
        messages, error = self._reactor.receive(link.stream)
        now = self._clock.monotonic()
        if link.stream.channel.ready and not link.introduced:
            link.introduced = True
            self._core.dial_connected(now)
        for message in messages:
            link.answered = True
            self._core.primary_said(now, message)
        if error is None or link is not self._link:
            return
        if isinstance(error, ProtocolError) and not link.answered:
            self._dial_failed(link, error)
        else:
            self.drop_link()
            self._core.link_closed(now)

    def tell_primary(self, message: Message) -> None:
        if self._link is not None and self._link.stream is not None:
            self._reactor.send(self._link.stream, message)

    def drop_link(self) -> None:
        """Close the connection to the primary, or forget the attempt to make one."""
        if self._link is not None and self._link.stream is not None:
            self._reactor.close_stream(self._link.stream)
        self._link = None

    def watch_node(self, entry: NodeEntry) -> None:
        """Notice the end of another node's process on this host."""
        process = processes.open_process(entry.pid, entry.started_ticks)
        if process is None:
            return

        def ended() -> None:
            self._processes.discard(process)
            self._reactor.unwatch(process)
            os.close(process)
            self._core.node_gone(self._clock.monotonic(), entry.node_id)

        self._processes.add(process)
        self._reactor.watch(process, ended)

    # -- seeds -------------------------------------------------------------------------------------------------

    def _claim_seeds(self) -> None:
        """As the primary, be found at every seed: listen there, or tell whoever does."""
        claims = [(seed, claim) for seed, claim in self._core.claims() if seed not in self._seeds_held]
        if claims and self._claiming.acquire(blocking=False):
            threading.Thread(target=self._claim, args=(claims,), name="elaswave-claim", daemon=True).start()

    def _claim(self, claims: list[tuple[Address, Claim]]) -> None:
        """Runs in a thread of its own."""
        try:
            for seed, claim in claims:
                with contextlib.suppress(OSError, ProtocolError):
                    listener = dialing.listen_on_seed(seed)
                    if listener is None:
                        dialing.tell(seed, self._secret, claim, self._dial_timeout_s)
                    else:
                        self._reactor.notify(lambda seed=seed, listener=listener: self._hold_seed(seed, listener))
        finally:
            self._claiming.release()

    def _hold_seed(self, seed: Address, listener: socket.socket) -> None:
        if self._reactor.closed:
            listener.close()
            return
        self._seeds_held.add(seed)
        self._listen(listener)
