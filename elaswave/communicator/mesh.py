"""The dynamic communicator: long-lived links, one epoll, and groups that are edited in place.

Every blocking wait of the process is one epoll over links, listeners and the control channel. A new view that
arrives on the control channel therefore frees any blocked operation, whoever its peer is. After ElasWave,
https://arxiv.org/abs/2510.00606, "in-place communication group edits".
"""

import os
import select
import socket
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from elaswave.clock import SYSTEM, Deadline
from elaswave.communicator.arena import ARENA_BYTES, SLOT_BYTES, SLOTS, Arena, PeerArena
from elaswave.communicator.frames import Frame, Kind
from elaswave.communicator.group import Group, GroupSpec
from elaswave.communicator.link import Introduction, Link
from elaswave.communicator.transfers import Early, Inbox, Key, Receive, Send
from elaswave.config import Transport
from elaswave.coordination.handshake import Handshake
from elaswave.errors import DeadlineExceeded, LaunchError, PeerLost, ProtocolError

STRANGERS_MAX = 512
STRANGER_TIMEOUT_S = 10.0
LEFT_BEHIND_S = 1.0
BACKLOG = 512
TCP_BUFFER_BYTES = 4 << 20


class Mesh:
    """One process's links and groups; used by its main thread alone.

    Args:
        worker_id: of this process, 12 characters.
        host_id: workers with the same id share memory, unless `transport` is tcp.
        secret: of the job; every link proves knowledge of it.
        transport: auto, shm or tcp.
        bind: address for links from other hosts.
        timeout_s: longest wait inside one operation.
        on_broken: called with a worker id and a reason when a link to it breaks.

    Raises:
        LaunchError: `bind` is not an address of this machine.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        host_id: str,
        secret: bytes,
        transport: Transport = Transport.AUTO,
        bind: str = "127.0.0.1",
        timeout_s: float = 60.0,
        on_broken: Callable[[str, str], None] | None = None,
    ) -> None:
        self.worker_id, self.host_id, self.timeout_s = worker_id, host_id, timeout_s
        self.epoch = 0
        self.arena = Arena()
        self.inbox = Inbox()
        self.bells: dict[Key, int] = {}
        self.links: dict[str, Link] = {}
        self._secret, self._transport, self._on_broken = secret, transport, on_broken
        self._introduction = Introduction(worker_id, self.arena.fd, ARENA_BYTES)
        self._groups: dict[str, Group] = {}
        self._by_id: dict[int, Group] = {}
        self._by_fd: dict[int, Link] = {}
        self._strangers: dict[int, Deadline] = {}
        self._sending: deque[Send] = deque()
        self._graves: list[Link] = []
        self._scratch = np.empty(0, np.uint8)
        self._interrupt = 0
        self._ahead = 0
        self._known: Mapping[str, object] = {}  # workers of this view; others may have dialled from a later one
        self._control: Callable[[], None] | None = None
        self._control_fd = -1
        self._epoll = select.epoll()
        self._listeners = self._listen(bind)
        self.address: dict[str, object] = self._address(bind)

    # -- addresses and listeners -------------------------------------------------------------------------------

    def _listen(self, bind: str) -> dict[int, socket.socket]:
        listeners = []
        if self._transport is not Transport.TCP:
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            local.bind(f"\0elaswave-{self.worker_id}-{os.urandom(6).hex()}")
            listeners.append(local)
        if self._transport is not Transport.SHM:
            try:
                remote = socket.create_server((bind, 0), backlog=BACKLOG)
                _widen(remote)
            except OSError as error:
                raise LaunchError(f"elasticity.bind = {bind!r}: {error.strerror}") from error
            listeners.append(remote)
        for listener in listeners:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        return {listener.fileno(): listener for listener in listeners}

    def _address(self, bind: str) -> dict[str, object]:
        """What other workers need to dial this one; JSON-able."""
        address: dict[str, object] = {"host_id": self.host_id}
        for listener in self._listeners.values():
            if listener.family == socket.AF_UNIX:
                address["unix"] = listener.getsockname()[1:].decode()
            else:
                address["tcp"] = [bind, listener.getsockname()[1]]
        return address

    def _dial(self, peer: str, address: Mapping[str, object]) -> None:
        near = self._transport is not Transport.TCP and address.get("host_id") == self.host_id
        unix, tcp = address.get("unix"), address.get("tcp")
        if near and isinstance(unix, str):
            sock, target = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"\0{unix}"
        elif isinstance(tcp, list | tuple) and len(tcp) == 2:
            sock, target = socket.socket(socket.AF_INET, socket.SOCK_STREAM), (str(tcp[0]), int(tcp[1]))
            _widen(sock)
        else:
            raise ProtocolError(f"worker {peer} cannot be reached from here: its address is {dict(address)}")
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError:
            pass
        except OSError as error:
            sock.close()
            self._suspect(peer, str(error))
            return
        self._adopt(sock, initiator=True).peer = peer

    def _adopt(self, sock: socket.socket, *, initiator: bool) -> Link:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shake = Handshake(self._secret, initiator=initiator, context=b"link")
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        link = Link(self, sock, shake, self._introduction)
        self._by_fd[link.fd] = link
        self._strangers[link.fd] = Deadline(STRANGER_TIMEOUT_S)
        link.start()
        return link

    # -- what the job calls ------------------------------------------------------------------------------------

    def attach(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Watch the control channel in every wait; `on_readable` may call `interrupt`."""
        self._control, self._control_fd = on_readable, fd
        self._epoll.register(fd, select.EPOLLIN)

    def detach(self) -> None:
        """Stop watching the control channel."""
        if self._control is not None:
            self._epoll.unregister(self._control_fd)
            self._control = None

    def interrupt(self, epoch: int) -> None:
        """Make every wait raise PeerLost until an edit reaches `epoch`."""
        self._interrupt = max(self._interrupt, epoch)

    def poll(self) -> None:
        """Make progress without blocking.

        Raises:
            PeerLost: a newer view interrupts the current epoch.
        """
        self._progress(0.0)
        self._raise_if_interrupted()
        self._bury()

    def group(self, name: str) -> Group:
        return self._groups[name]

    def edit(self, epoch: int, addresses: Mapping[str, Mapping[str, object]], groups: Mapping[str, GroupSpec]) -> None:
        """Enter an epoch in place: healthy links stay, others are dropped, missing ones are opened.

        Args:
            epoch: of the view.
            addresses: of every worker in the view, as its mesh announced it.
            groups: this worker's groups, by name; a group that is not named ceases to exist.

        Raises:
            PeerLost: a still newer view interrupts.
            DeadlineExceeded: a member could not be linked within `timeout_s`.
        """
        self._bury()
        self.epoch = epoch
        for peer in self.links.keys() - addresses.keys():
            if peer in self._known:
                self._drop(self.links[peer])
        self._known = addresses
        self._edit_groups(epoch, groups)
        self._abandon()
        if not self._unlinked():
            return

        def linked() -> bool:
            missing = self._unlinked()
            self._dial_missing(missing, addresses)
            return not missing

        self.wait(linked, what=lambda: f"links to {self._unlinked()}")

    def _unlinked(self) -> list[str]:
        """Members of this worker's groups without a link; a member may be named twice."""
        links = self.links
        return [peer for group in self._groups.values() for peer in group.peers if peer not in links]

    def _dial_missing(self, missing: Sequence[str], addresses: Mapping[str, Mapping[str, object]]) -> None:
        """Of two workers the one with the larger id dials."""
        dialled = {link.peer for link in self._by_fd.values()} if missing else set()
        for peer in sorted(set(missing) - dialled):
            if self.worker_id > peer:
                self._dial(peer, addresses[peer])

    def _edit_groups(self, epoch: int, groups: Mapping[str, GroupSpec]) -> None:
        if self._groups.keys() == groups.keys():
            for name, group in self._groups.items():
                group.edit(epoch, groups[name])
            return
        for name in [name for name in self._groups if name not in groups]:
            self._groups.pop(name).close()
        for name, spec in groups.items():
            if name in self._groups:
                self._groups[name].edit(epoch, spec)
            else:
                self._groups[name] = Group(self, name, zlib.crc32(name.encode()), epoch, spec)
        self._by_id = {group.id: group for group in self._groups.values()}
        if len(self._by_id) != len(self._groups):
            raise ValueError(f"two of the groups {sorted(groups)} have the same id; rename one")

    def _abandon(self) -> None:
        """Forget what belongs to older epochs."""
        self.inbox.posted.clear()
        self._sending.clear()
        for link in self.links.values():
            link.abandon()
        if self.inbox.early:
            for key in [key for key in self.inbox.early if self._stale(key[1], key[2])]:
                while (early := self.inbox.pop_early(key)) is not None:
                    self._discard(early)
        if self.bells:
            for key in [key for key in self.bells if self._stale(key[1], key[2])]:
                del self.bells[key]

    def close(self) -> None:
        """Close every link and listener; nothing is left open."""
        for link in list(self._by_fd.values()):
            self._drop(link)
        self._bury()
        for group in self._groups.values():
            group.close()
        for listener in self._listeners.values():
            listener.close()
        self._epoll.close()
        self.arena.close()

    # -- the one place that waits ------------------------------------------------------------------------------

    def wait(
        self,
        done: Callable[[], bool],
        timeout_s: float | None = None,
        what: Callable[[], str] = lambda: "an operation",
    ) -> None:
        """Make progress until `done()`.

        Raises:
            PeerLost: a newer view interrupts.
            DeadlineExceeded: after `timeout_s`, by default the mesh's.
        """
        if done():
            return
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        start, waited_s = SYSTEM.monotonic(), 0.0
        while True:
            if self._interrupt > self.epoch:
                raise PeerLost(self._interrupt)
            if self._ahead > self.epoch and waited_s > LEFT_BEHIND_S:
                raise PeerLost(self._ahead)  # a member is in a newer epoch and will never answer in this one
            if waited_s >= limit_s:
                raise DeadlineExceeded(f"waited {limit_s} s for {what()}")
            self._progress(min(limit_s - waited_s, LEFT_BEHIND_S))
            if done():
                return
            waited_s = SYSTEM.monotonic() - start

    def _raise_if_interrupted(self) -> None:
        if self._interrupt > self.epoch:
            raise PeerLost(self._interrupt)

    def _progress(self, timeout_s: float) -> None:
        for fd, mask in self._epoll.poll(timeout_s):
            link = self._by_fd.get(fd)
            if link is not None:
                link.on_event(mask)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif fd == self._control_fd and self._control is not None:
                self._control()
        if self._sending:
            self._push()
        if self._strangers:
            self._drop_strangers()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if len(self._strangers) >= STRANGERS_MAX:
            sock.close()
            return
        self._adopt(sock, initiator=False)

    def _drop_strangers(self) -> None:
        """Connections that do not introduce themselves in time are not kept."""
        for fd in [fd for fd, deadline in self._strangers.items() if deadline.passed()]:
            self._drop(self._by_fd[fd])

    def _push(self) -> None:
        """Go on with unfinished sends, in order per peer."""
        waiting: deque[Send] = deque()
        blocked: set[str] = set()
        for send in self._sending:
            link = self.links.get(send.key[0])
            if link is not None and send.key[0] not in blocked:
                send.push(link, self.arena.bytes)
            if not send.done:
                blocked.add(send.key[0])
                waiting.append(send)
        self._sending = waiting

    # -- messages ----------------------------------------------------------------------------------------------

    def start_send(self, key: Key, buffer: np.ndarray) -> Send:
        """Begin to send a flat uint8 array; it must not change until the handle is done."""
        send = Send(key, buffer)
        link = self.links.get(key[0])
        if link is not None and not any(other.key[0] == key[0] for other in self._sending):
            send.push(link, self.arena.bytes)
        if not send.done:
            self._sending.append(send)
        return send

    def start_receive(self, key: Key, buffer: np.ndarray) -> Receive:
        """Post a receive into a flat uint8 array."""
        receive = Receive(buffer)
        self.inbox.posted.setdefault(key, deque()).append(receive)
        while not receive.done and self.inbox.expected(key) is receive:
            early = self.inbox.pop_early(key)
            if early is None:
                break
            early.link.parked -= early.frame.kind == Kind.SHARED
            self._deliver(early.link, early.frame, early.payload, key, receive)
        return receive

    def scratch(self, num_bytes: int) -> np.ndarray:
        """Memory for one collective, the same every time: pages that are new cost more than what is done with them."""
        if len(self._scratch) < num_bytes:
            self._scratch = np.empty(num_bytes, np.uint8)
        return self._scratch[:num_bytes]

    # -- called by links ---------------------------------------------------------------------------------------

    def payload_target(self, link: Link, frame: Frame) -> memoryview:
        """Where the payload of a DATA frame goes: straight into a posted buffer when there is one."""
        if not self._stale(frame.group, frame.epoch):
            receive = self.inbox.expected((link.peer, frame.group, frame.epoch, frame.tag))
            if receive is not None and len(receive.view) - receive.got >= frame.size:
                return receive.view[receive.got : receive.got + frame.size]
        return memoryview(bytearray(frame.size))

    def arrived(self, link: Link, frame: Frame, payload: bytes | memoryview | None) -> None:
        """A whole frame is here."""
        if frame.kind == Kind.CREDIT:
            self._take_credit(link, frame.place)
            return
        key = (link.peer, frame.group, frame.epoch, frame.tag)
        if frame.epoch > self._ahead and any(link.peer in group.members for group in self._groups.values()):
            self._ahead = frame.epoch
        if self._stale(frame.group, frame.epoch):
            if frame.kind == Kind.SHARED:
                link.credit(frame.place)
        elif frame.kind == Kind.BELL:
            self.bells[key] = frame.place
        else:
            receive = self.inbox.expected(key)
            if receive is not None:
                self._deliver(link, frame, payload, key, receive)
            else:
                self._keep(link, frame, payload, key)

    def _take_credit(self, link: Link, place: int) -> None:
        if link.ring is None or (place - link.ring) % SLOT_BYTES or not 0 <= place - link.ring < SLOTS * SLOT_BYTES:
            raise ProtocolError(f"worker {link.peer} gives back a slot that it does not have")
        if place in link.free:
            raise ProtocolError(f"worker {link.peer} gives back a slot twice")
        link.free.append(place)

    def _deliver(
        self, link: Link, frame: Frame, payload: bytes | memoryview | None, key: Key, receive: Receive
    ) -> None:
        start, stop = receive.got, receive.got + frame.size
        if stop > len(receive.view) or (frame.last and stop != len(receive.view)):
            raise ProtocolError(f"worker {link.peer} sends {stop} bytes where {len(receive.view)} were asked for")
        if frame.kind == Kind.SHARED:
            assert link.arena is not None
            receive.buffer[start:stop] = link.arena.bytes[frame.place : frame.place + frame.size]
            link.credit(frame.place)
        elif isinstance(payload, bytes) or (payload is not None and payload.obj is not receive.view.obj):
            receive.view[start:stop] = payload
        receive.got = stop
        if frame.last:
            self.inbox.complete(key)

    def _keep(self, link: Link, frame: Frame, payload: bytes | memoryview | None, key: Key) -> None:
        """Nobody has asked for the frame yet; shared slots are emptied before the ring runs dry."""
        if frame.kind == Kind.SHARED:
            if link.parked >= SLOTS - 2:
                assert link.arena is not None
                data = link.arena.bytes[frame.place : frame.place + frame.size].tobytes()
                link.credit(frame.place)
                frame, payload = frame._replace(kind=int(Kind.DATA), place=0), memoryview(data)
            else:
                link.parked += 1
        self.inbox.stash(key, Early(link, frame, payload))

    def _discard(self, early: Early) -> None:
        if early.frame.kind == Kind.SHARED and not early.link.dead:
            early.link.parked -= 1
            early.link.credit(early.frame.place)

    def _stale(self, group_id: int, epoch: int) -> bool:
        group = self._by_id.get(group_id)
        return epoch < (self.epoch if group is None else group.epoch)

    def came_up(self, link: Link) -> None:
        """A link has introduced itself; of two to the same worker the newer is kept."""
        self._strangers.pop(link.fd, None)
        older = self.links.get(link.peer)
        if older is not None:
            self._drop(older)
        self.links[link.peer] = link
        if link.arena is not None and (ring := self.arena.take_ring()) is not None:
            link.use_ring(ring)

    def broke(self, link: Link, why: str) -> None:
        """A link is gone; what that means is decided elsewhere."""
        known = link.up
        self._drop(link)
        if known:
            self._suspect(link.peer, why)

    def arena_of(self, peer: str) -> PeerArena | None:
        """Shared memory of a worker that has rung; one that is gone since can still be read until the next poll."""
        link = self.links.get(peer) or next((grave for grave in self._graves if grave.peer == peer), None)
        return None if link is None else link.arena

    def want_write(self, link: Link, wanted: bool) -> None:
        if not link.dead:
            self._epoll.modify(link.fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def _suspect(self, peer: str, why: str) -> None:
        if self._on_broken is not None:
            self._on_broken(peer, why)

    def _drop(self, link: Link) -> None:
        """Forget a link at once; its memory, which takes long, is let go of off the repair path."""
        if link.dead:
            return
        self._by_fd.pop(link.fd, None)
        self._strangers.pop(link.fd, None)
        try:
            self._epoll.unregister(link.fd)
        except OSError:
            pass
        link.hang_up()
        if self.links.get(link.peer) is link:
            del self.links[link.peer]
        self._graves.append(link)

    def _bury(self) -> None:
        while self._graves:
            link = self._graves.pop()
            self.inbox.rescue(link)
            link.let_go()
            if link.ring is not None:
                self.arena.give_ring(link.ring)


def _widen(sock: socket.socket) -> None:
    """Let the kernel take a whole piece at once; must be called before a connection is made."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TCP_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TCP_BUFFER_BYTES)
