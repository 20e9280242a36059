"""Messages on their way: what was posted to be received, and what is being sent."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from elaswave.communicator.arena import SLOT_BYTES
from elaswave.communicator.frames import FRAME_BYTES_MAX, INLINE_BYTES_MAX, Kind, pack
from elaswave.communicator.link import Link

Key = tuple[str, int, int, int]
"""Peer, group, epoch, tag: messages with the same key arrive in the order in which they were sent."""


class Handle:
    """A message that is being sent to or received from `peer`; complete when `done`."""

    __slots__ = ("done", "peer")

    def __init__(self, peer: str) -> None:
        self.peer, self.done = peer, False


class Receive(Handle):
    """A posted receive.

    Args:
        peer: who sends it.
        buffer: flat uint8 array, written in place.
    """

    __slots__ = ("buffer", "got", "view")

    def __init__(self, peer: str, buffer: np.ndarray) -> None:
        super().__init__(peer)
        self.buffer, self.view, self.got = buffer, buffer.data, 0


class Send(Handle):
    """A message that may take several frames."""

    __slots__ = ("buffer", "key", "sent")

    def __init__(self, key: Key, buffer: np.ndarray) -> None:
        super().__init__(key[0])
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


class Outbox:
    """Sends that are not through yet, in order per peer."""

    def __init__(self, links: Mapping[str, Link], arena: np.ndarray) -> None:
        self._links, self._arena = links, arena
        self._sending: deque[Send] = deque()

    def __bool__(self) -> bool:
        return bool(self._sending)

    def start(self, key: Key, buffer: np.ndarray) -> Send:
        """Begin to send a flat uint8 array; it must not change until the handle is done."""
        send = Send(key, buffer)
        link = self._links.get(key[0])
        if link is not None and not any(other.key[0] == key[0] for other in self._sending):
            send.push(link, self._arena)
        if not send.done:
            self._sending.append(send)
        return send

    def push(self) -> None:
        """Go on with all of them."""
        waiting: deque[Send] = deque()
        blocked: set[str] = set()
        for send in self._sending:
            peer = send.key[0]
            link = self._links.get(peer)
            if link is not None and peer not in blocked:
                send.push(link, self._arena)
            if not send.done:
                blocked.add(peer)
                waiting.append(send)
        self._sending = waiting

    def clear(self) -> None:
        """Forget them; their links drop what is unsent on their own."""
        self._sending.clear()
