"""Messages on their way: what was posted to be received, what arrived before it was asked for, what is being sent."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from elaswave.communicator.arena import SLOT_BYTES
from elaswave.communicator.frames import FRAME_BYTES_MAX, INLINE_BYTES_MAX, Frame, Kind, pack
from elaswave.communicator.link import Link
from elaswave.errors import ProtocolError

Key = tuple[str, int, int, int]
"""Peer, group, epoch, tag: messages with the same key arrive in the order in which they were sent."""
STASH_BYTES_MAX = 1 << 30


class Handle:
    """A message that is being sent or received; complete when `done`."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False


class Receive(Handle):
    """A posted receive.

    Args:
        buffer: flat uint8 array, written in place.
    """

    __slots__ = ("buffer", "got", "view")

    def __init__(self, buffer: np.ndarray) -> None:
        super().__init__()
        self.buffer, self.view, self.got = buffer, buffer.data, 0


class Send(Handle):
    """A message that may take several frames."""

    __slots__ = ("buffer", "key", "sent")

    def __init__(self, key: Key, buffer: np.ndarray) -> None:
        super().__init__()
        self.key, self.buffer, self.sent = key, buffer, 0

    def push(self, link: Link, arena: np.ndarray) -> None:
        """Queue as many frames as the link has room for."""
        if link.arena is not None and link.ring is not None and len(self.buffer) > INLINE_BYTES_MAX:
            self._push_shared(link, arena)
        elif not self.sent:
            self._push_inline(link)
        elif link.idle:
            self.done = True

    def _push_shared(self, link: Link, arena: np.ndarray) -> None:
        _, group, epoch, tag = self.key
        total = len(self.buffer)
        while self.sent < total and link.free and not link.dead:
            slot = link.free.pop()  # the one that was free last is still in the cache
            size = min(SLOT_BYTES, total - self.sent)
            arena[slot : slot + size] = self.buffer[self.sent : self.sent + size]
            self.sent += size
            header = pack(
                Kind.SHARED, last=self.sent == total, group=group, epoch=epoch, tag=tag, size=size, place=slot
            )
            link.send(header, slot=slot)
        self.done = self.sent == total

    def _push_inline(self, link: Link) -> None:
        _, group, epoch, tag = self.key
        total, view = len(self.buffer), self.buffer.data
        for start in range(0, max(total, 1), FRAME_BYTES_MAX):
            size = min(FRAME_BYTES_MAX, total - start)
            last = start + size == total
            header = pack(Kind.DATA, last=last, group=group, epoch=epoch, tag=tag, size=size, place=0)
            link.send(header, view[start : start + size])
        self.sent = max(total, 1)
        self.done = link.idle


@dataclass(slots=True)
class Early:
    """A frame that came before its receive was posted."""

    link: Link
    frame: Frame
    payload: bytes | memoryview | None


@dataclass(slots=True)
class Inbox:
    """Posted receives and early frames, by key."""

    posted: dict[Key, deque[Receive]] = field(default_factory=dict)
    early: dict[Key, deque[Early]] = field(default_factory=dict)
    early_bytes: int = 0

    def expected(self, key: Key) -> Receive | None:
        queue = self.posted.get(key)
        return queue[0] if queue else None

    def stash(self, key: Key, early: Early) -> None:
        """Keep a frame for later.

        Raises:
            ProtocolError: more is kept than any job in step would need.
        """
        self.early_bytes += early.frame.size
        if self.early_bytes > STASH_BYTES_MAX:
            raise ProtocolError(f"more than {STASH_BYTES_MAX} bytes arrived that nobody has asked for")
        self.early.setdefault(key, deque()).append(early)

    def pop_early(self, key: Key) -> Early | None:
        queue = self.early.get(key)
        if not queue:
            return None
        early = queue.popleft()
        self.early_bytes -= early.frame.size
        if not queue:
            del self.early[key]
        return early

    def rescue(self, link: Link) -> None:
        """Copy what a link that goes away has left in its shared memory."""
        if not link.parked or link.arena is None:
            return
        for queue in self.early.values():
            for early in queue:
                if early.link is link and early.frame.kind == Kind.SHARED:
                    start = early.frame.place
                    data = link.arena.bytes[start : start + early.frame.size].tobytes()
                    early.frame, early.payload = early.frame._replace(kind=int(Kind.DATA)), memoryview(data)
        link.parked = 0

    def complete(self, key: Key) -> None:
        """The first receive of `key` has its last byte."""
        queue = self.posted[key]
        queue.popleft().done = True
        if not queue:
            del self.posted[key]
