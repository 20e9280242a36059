"""One long-lived connection to another worker: framing, flow control, and getting back in step after an edit.

The link knows no groups: it hands every frame to its owner, which says where payload goes.
"""

import array
import os
import select
import socket
from collections import deque
from typing import Protocol

from elaswave.communicator.arena import SLOT_BYTES, SLOTS, PeerArena
from elaswave.communicator.frames import CARRIERS, HEADER_BYTES, ID_BYTES, Frame, Kind, pack, parse
from elaswave.coordination.handshake import Handshake
from elaswave.errors import ProtocolError

READ_BYTES = 16 << 10
READS_MAX = 64
"""From one link before the others have their turn."""
BUFFERS_MAX = 32


class Owner(Protocol):
    """What a link needs of the mesh."""

    def payload_target(self, link: "Link", frame: Frame) -> memoryview: ...

    def arrived(self, link: "Link", frame: Frame, payload: bytes | memoryview | None) -> None: ...

    def came_up(self, link: "Link") -> None: ...

    def broke(self, link: "Link", why: str) -> None: ...

    def want_write(self, link: "Link", wanted: bool) -> None: ...


class _Out:
    """A frame on its way out; `started` once its first byte is with the kernel."""

    __slots__ = ("control", "rest", "slot", "started")

    def __init__(self, rest: list[memoryview], slot: int | None, control: bool) -> None:
        self.rest, self.slot, self.control, self.started = rest, slot, control, False


class Link:
    """A connection in the making or in use.

    Attributes:
        peer: worker id of the other end; empty until its hello.
        up: authenticated and introduced.
        arena: the peer's shared memory, if it shares any.
        free: offsets of free slots in this worker's ring towards the peer.
        parked: slots of the peer that hold payload nobody has asked for yet.
        mute: the peer does not read any more. What it sent before is still read, up to the end.
    """

    def __init__(self, owner: Owner, sock: socket.socket, shake: Handshake, introduction: "Introduction") -> None:
        sock.setblocking(False)
        self._owner, self.sock, self.fd, self._shake = owner, sock, sock.fileno(), shake
        self._introduction = introduction
        self.peer, self.up, self.dead, self.mute = "", False, False, False
        self.arena: PeerArena | None = None
        self.ring: int | None = None
        self.free: deque[int] = deque()
        self.parked = 0
        self._queue: deque[_Out] = deque()
        self._wants_write = False
        self._buffer = b""
        self._frame: Frame | None = None
        self._target: memoryview | None = None
        self._missing = 0
        self._payload: memoryview | None = None
        self._fds: tuple[int, ...] = ()

    def start(self) -> None:
        """Open the handshake."""
        self._enqueue(_Out([memoryview(self._shake.hello())], None, True))

    # -- sending -----------------------------------------------------------------------------------------------

    def use_ring(self, offset: int) -> None:
        """Give the link a ring of this worker's arena for payload towards the peer."""
        self.ring = offset
        self.free = deque(offset + i * SLOT_BYTES for i in range(SLOTS))

    def send(self, header: bytes, payload: memoryview | None = None, *, slot: int | None = None) -> None:
        """Queue a frame, and send at once what the kernel takes.

        Args:
            header: packed; a small payload may be part of it.
            payload: bytes behind it; must not change until the frame is out.
            slot: offset of the slot the frame points to, free again if the frame is dropped unsent.
        """
        if self.dead or self.mute:
            return
        if self._queue:
            self._enqueue(_Out(_views(header, payload), slot, False))
            return
        try:
            sent = self.sock.send(header) if payload is None else self.sock.sendmsg((header, payload))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fall_mute()
            return
        if sent < len(header) + (len(payload) if payload is not None else 0):
            out = _Out(_views(header, payload), slot, False)
            _advance(out, sent)
            self._enqueue(out)

    def credit(self, offset: int) -> None:
        """Tell the peer that its slot may be filled again."""
        out = _Out(_views(pack(Kind.CREDIT, size=0, place=offset), None), None, True)
        self._enqueue(out)

    @property
    def idle(self) -> bool:
        """Everything is with the kernel."""
        return not self._queue and not self.mute

    def _enqueue(self, out: _Out) -> None:
        if not self.mute:
            self._queue.append(out)
            self.flush()

    def _fall_mute(self) -> None:
        """A socket that cannot be written to may still hold the peer's last words; reading ends with its end."""
        self.mute = True
        self._queue.clear()

    def flush(self) -> None:
        """Send what the kernel takes."""
        try:
            while self._queue:
                self._send_some()
        except BlockingIOError:
            pass
        except OSError:
            self._fall_mute()
        if self._wants_write != bool(self._queue):
            self._wants_write = bool(self._queue)
            self._owner.want_write(self, self._wants_write)

    def _send_some(self) -> None:
        buffers: list[memoryview] = []
        for out in self._queue:
            buffers += out.rest
            if len(buffers) >= BUFFERS_MAX:
                break
        sent = self.sock.sendmsg(buffers) if len(buffers) > 1 else self.sock.send(buffers[0])
        while self._queue and (sent := _advance(self._queue[0], sent)) >= 0:
            self._queue.popleft()

    def abandon(self) -> None:
        """Leave an epoch: drop unsent frames, finish a half-sent one, and let half-received payload run aside.

        The byte stream stays in step; the peer discards what belongs to the old epoch.
        """
        if self._queue:
            self._drop_unsent()
        if self._target is not None:
            self._target = memoryview(bytearray(self._missing))

    def _drop_unsent(self) -> None:
        kept: deque[_Out] = deque()
        for out in self._queue:
            if out.started or out.control:
                kept.append(out)
            elif out.slot is not None:
                self.free.append(out.slot)
        self._queue = kept

    # -- receiving ---------------------------------------------------------------------------------------------

    def on_event(self, mask: int) -> None:
        """React to what epoll said."""
        if mask & select.EPOLLOUT:
            self.flush()
        if mask & ~select.EPOLLOUT and not self.dead:
            try:
                self._read()
            except BlockingIOError:
                return
            except (OSError, ProtocolError) as error:
                self._owner.broke(self, str(error))

    def _read(self) -> None:
        while not self.up:
            if not self._introduce():
                return
        for _ in range(READS_MAX):
            if self.dead:
                return
            if self._missing:
                if not self._read_payload():
                    return
                continue
            data = self.sock.recv(READ_BYTES)
            if not data:
                raise ProtocolError("the connection was closed")
            self._parse(self._buffer + data if self._buffer else data)
            if len(data) < READ_BYTES and not self._missing:
                return

    def _read_payload(self) -> bool:
        """Read payload straight to where it goes; false when the socket ran dry."""
        assert self._target is not None
        got = self.sock.recv_into(self._target, self._missing)
        if not got:
            raise ProtocolError("the connection was closed")
        self._missing -= got
        self._target = self._target[got:]
        if self._missing:
            return True
        frame, self._frame, self._target = self._frame, None, None
        assert frame is not None
        self._owner.arrived(self, frame, self._payload)
        return True

    def _parse(self, data: bytes) -> None:
        """Hand over every whole frame in `data`; keep the rest for later."""
        offset, end = 0, len(data)
        arena_bytes = self.arena.size if self.arena is not None else 0
        while end - offset >= HEADER_BYTES and not self.dead:
            frame = parse(data, offset, arena_bytes)
            offset += HEADER_BYTES
            if frame.kind not in CARRIERS:
                self._owner.arrived(self, frame, None)
                continue
            have = end - offset
            if have >= frame.size:
                payload = data[offset : offset + frame.size]
                offset += frame.size
                self._owner.arrived(self, frame, payload)
                continue
            target = self._owner.payload_target(self, frame)
            target[:have] = data[offset:]
            self._frame, self._payload, offset = frame, target, end
            self._target, self._missing = target[have:], frame.size - have
            break
        self._buffer = data[offset:] if not self._missing else b""

    # -- introduction ------------------------------------------------------------------------------------------

    def _introduce(self) -> bool:
        """One step of handshake or hello; false when the socket ran dry."""
        wanted = self._shake.wanted_bytes
        if wanted:
            data = self.sock.recv(wanted)
            if not data:
                raise ProtocolError("the connection was closed before the peer was known")
            answer = self._shake.receive(data)
            if answer is not None:
                self._enqueue(_Out([memoryview(answer)], None, True))
            if self._shake.done:
                self.flush()
                self._introduction.send(self.sock)
            return True
        return self._read_hello()

    def _read_hello(self) -> bool:
        size = HEADER_BYTES + ID_BYTES
        data, ancillary, *_ = self.sock.recvmsg(size - len(self._buffer), socket.CMSG_SPACE(4))
        fds = array.array("i")
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(value[: len(value) - len(value) % 4])
        self._fds = (*self._fds, *fds)
        if not data:
            raise ProtocolError("the connection was closed before the peer was known")
        self._buffer += data
        if len(self._buffer) < size:
            return True
        self._accept_hello(self._buffer)
        return True

    def _accept_hello(self, data: bytes) -> None:
        frame = parse(data, 0, 0)
        self._buffer = b""
        try:
            if frame.kind != Kind.HELLO or frame.size != ID_BYTES:
                raise ProtocolError("a hello was expected")
            self.peer = data[HEADER_BYTES:].decode("ascii", "replace")
            if self._fds:
                self.arena = PeerArena(self._fds[0], frame.place)
        finally:
            self._close_fds()
        self.up = True
        self._owner.came_up(self)

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def hang_up(self) -> None:
        """Close the socket; the peer's memory can still be read."""
        self.dead = True
        self._close_fds()
        self._queue.clear()
        self.sock.close()

    def let_go(self) -> None:
        """Unmap the peer's memory, once the socket is closed."""
        if self.arena is not None:
            self.arena.close()


class Introduction:
    """The hello that a worker sends on every link once the handshake is done.

    Args:
        worker_id: of this worker.
        arena_fd: file of its arena, shared over unix sockets.
        arena_bytes: size of the arena.
    """

    def __init__(self, worker_id: str, arena_fd: int, arena_bytes: int) -> None:
        self._name = worker_id.encode("ascii")
        self._arena_fd, self._arena_bytes = arena_fd, arena_bytes

    def send(self, sock: socket.socket) -> None:
        """Send the hello; it is far smaller than any socket buffer, so it goes out whole."""
        shares = sock.family == socket.AF_UNIX
        header = pack(Kind.HELLO, size=len(self._name), place=self._arena_bytes if shares else 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._arena_fd]))] if shares else []
        sock.sendmsg([header + self._name], rights)


def _views(header: bytes, payload: memoryview | None) -> list[memoryview]:
    return [memoryview(header)] if payload is None else [memoryview(header), payload]


def _advance(out: _Out, sent: int) -> int:
    """Take `sent` bytes off a frame; returns what is left of `sent`, or -1 if the frame is not through."""
    while out.rest and sent >= len(out.rest[0]):
        sent -= len(out.rest.pop(0))
        out.started = True
    if not out.rest:
        return sent
    if sent:
        out.rest[0] = out.rest[0][sent:]
        out.started = True
    return -1
