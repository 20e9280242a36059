"""What arrives: frames go to whoever has asked for them, wait for the question, or are discarded as stale."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from elaswave.communicator.arena import SLOT_BYTES, SLOTS
from elaswave.communicator.frames import Frame, Kind
from elaswave.communicator.link import Link
from elaswave.communicator.transfers import Key, Receive
from elaswave.errors import ProtocolError

STASH_BYTES_MAX = 1 << 30
TOLD_MAX = 1 << 14

Told = int | bytes | memoryview
"""The place of a bell, or the payload of a note."""


@dataclass(slots=True)
class Early:
    """A frame that came before its receive was posted."""

    link: Link
    frame: Frame
    payload: bytes | memoryview | None


class Inbox:
    """Everything that came in and was not taken yet; what is of an older epoch is not let in.

    Attributes:
        epoch: what is older is stale; what is newer waits.
        ahead: the newest epoch that a member was heard in.
        members: workers whose frames count for `ahead`.
        told: bells and notes, by key.
    """

    def __init__(self) -> None:
        self.epoch = self.ahead = 0
        self.members: set[str] = set()
        self.told: dict[Key, Told] = {}
        self._posted: dict[Key, deque[Receive]] = {}
        self._early: dict[Key, deque[Early]] = {}
        self._early_bytes = 0

    def enter(self, epoch: int, members: set[str]) -> None:
        """Begin an epoch: forget what belongs to older ones."""
        self.epoch, self.members = epoch, members
        self._posted.clear()
        if self._early:
            for key in [key for key in self._early if key[2] < epoch]:
                while (early := self._pop_early(key)) is not None:
                    _discard(early)
        if self.told:
            for key in [key for key in self.told if key[2] < epoch]:
                del self.told[key]

    def post(self, key: Key, buffer: np.ndarray) -> Receive:
        """Ask for the next message of `key`, into a flat uint8 array."""
        receive = Receive(key[0], buffer)
        self._posted.setdefault(key, deque()).append(receive)
        while not receive.done and self._expected(key) is receive:
            early = self._pop_early(key)
            if early is None:
                break
            early.link.parked -= early.frame.kind == Kind.SHARED
            self._deliver(early.link, early.frame, early.payload, key, receive)
        return receive

    def rescue(self, link: Link) -> None:
        """Copy what a link that goes away has left in its shared memory."""
        if not link.parked or link.arena is None:
            return
        for queue in self._early.values():
            for early in queue:
                if early.link is link and early.frame.kind == Kind.SHARED:
                    start = early.frame.place
                    data = link.arena.bytes[start : start + early.frame.size].tobytes()
                    early.frame, early.payload = early.frame._replace(kind=Kind.DATA), memoryview(data)
        link.parked = 0

    # -- called by links ---------------------------------------------------------------------------------------

    def payload_target(self, link: Link, frame: Frame) -> memoryview:
        """Where payload goes: straight into a posted buffer when there is one."""
        if frame.kind == Kind.DATA and frame.epoch >= self.epoch:
            receive = self._expected((link.peer, frame.group, frame.epoch, frame.tag))
            if receive is not None and len(receive.view) - receive.got >= frame.size:
                return receive.view[receive.got : receive.got + frame.size]
        return memoryview(bytearray(frame.size))

    def arrived(self, link: Link, frame: Frame, payload: bytes | memoryview | None) -> None:
        """A whole frame is here."""
        kind, epoch = frame.kind, frame.epoch
        if kind == Kind.CREDIT:
            _take_credit(link, frame.place)
            return
        if epoch < self.epoch:
            if kind == Kind.SHARED:
                link.credit(frame.place)
            return
        if epoch > self.epoch and epoch > self.ahead and link.peer in self.members:
            self.ahead = epoch
        key = (link.peer, frame.group, epoch, frame.tag)
        if kind == Kind.NOTE or kind == Kind.BELL:
            if len(self.told) >= TOLD_MAX:
                raise ProtocolError(f"more than {TOLD_MAX} rounds were told of that nobody waits for")
            self.told[key] = frame.place if payload is None else payload
        else:
            receive = self._expected(key)
            if receive is not None:
                self._deliver(link, frame, payload, key, receive)
            else:
                self._keep(link, frame, payload, key)

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
            self._complete(key)

    def _keep(self, link: Link, frame: Frame, payload: bytes | memoryview | None, key: Key) -> None:
        """Nobody has asked for the frame yet; shared slots are emptied before the ring runs dry."""
        if frame.kind == Kind.SHARED:
            if link.parked >= SLOTS - 2:
                assert link.arena is not None
                data = link.arena.bytes[frame.place : frame.place + frame.size].tobytes()
                link.credit(frame.place)
                frame, payload = frame._replace(kind=Kind.DATA, place=0), memoryview(data)
            else:
                link.parked += 1
        self._early_bytes += frame.size
        if self._early_bytes > STASH_BYTES_MAX:
            raise ProtocolError(f"more than {STASH_BYTES_MAX} bytes arrived that nobody has asked for")
        self._early.setdefault(key, deque()).append(Early(link, frame, payload))

    def _expected(self, key: Key) -> Receive | None:
        queue = self._posted.get(key)
        return queue[0] if queue else None

    def _pop_early(self, key: Key) -> Early | None:
        queue = self._early.get(key)
        if not queue:
            return None
        early = queue.popleft()
        self._early_bytes -= early.frame.size
        if not queue:
            del self._early[key]
        return early

    def _complete(self, key: Key) -> None:
        """The first receive of `key` has its last byte."""
        queue = self._posted[key]
        queue.popleft().done = True
        if not queue:
            del self._posted[key]


def _discard(early: Early) -> None:
    if early.frame.kind == Kind.SHARED and not early.link.dead:
        early.link.parked -= 1
        early.link.credit(early.frame.place)


def _take_credit(link: Link, place: int) -> None:
    if link.ring is None or (place - link.ring) % SLOT_BYTES or not 0 <= place - link.ring < SLOTS * SLOT_BYTES:
        raise ProtocolError(f"worker {link.peer} gives back a slot that it does not have")
    if place in link.free:
        raise ProtocolError(f"worker {link.peer} gives back a slot twice")
    link.free.append(place)
