"""Two links over a socket pair: frames arrive whole, and the stream stays in step when one side leaves an epoch."""

import os
import select
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from elaswave.clock import Deadline
from elaswave.communicator.arena import SLOT_BYTES, SLOTS
from elaswave.communicator.frames import FRAME_BYTES_MAX, HEADER, Frame, Kind, pack
from elaswave.communicator.link import Introduction, Link
from elaswave.coordination.handshake import Handshake

SECRET = b"s" * 32
WAIT_S = 20.0


class Owner:
    """Keeps what a link hands over."""

    def __init__(self) -> None:
        self.frames: list[tuple[Frame, bytes | None]] = []
        self.up = False
        self.broken: list[str] = []

    def payload_target(self, link: Link, frame: Frame) -> memoryview:
        return memoryview(bytearray(frame.size))

    def arrived(self, link: Link, frame: Frame, payload: bytes | memoryview | None) -> None:
        self.frames.append((frame, None if payload is None else bytes(payload)))

    def came_up(self, link: Link) -> None:
        self.up = True

    def broke(self, link: Link, why: str) -> None:
        self.broken.append(why)
        link.hang_up()

    def want_write(self, link: Link, wanted: bool) -> None:
        pass


class Pair:
    """Two connected links and their owners."""

    def __init__(self, secrets: tuple[bytes, bytes] = (SECRET, SECRET)) -> None:
        self.owners = (Owner(), Owner())
        self._fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, 1 << 20)
        self.links = [
            Link(owner, sock, Handshake(secret, initiator=first, context=b"link"), self._introduction(name))
            for owner, sock, secret, first, name in zip(
                self.owners, socket.socketpair(), secrets, (True, False), ("a" * 12, "b" * 12), strict=True
            )
        ]
        for link in self.links:
            link.start()

    def _introduction(self, name: str) -> Introduction:
        return Introduction(name, self._fd, 1 << 20)

    def turn(self) -> None:
        for link in self.links:
            if not link.dead:
                link.on_event(select.EPOLLIN | select.EPOLLOUT)

    def until(self, done) -> None:
        deadline = Deadline(WAIT_S)
        while not done():
            assert not deadline.passed()
            self.turn()

    def close(self) -> None:
        for link in self.links:
            link.hang_up()
            link.let_go()
        os.close(self._fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    made.until(lambda: all(owner.up for owner in made.owners))
    yield made
    made.close()


def data(epoch: int, payload: bytes) -> tuple[bytes, memoryview]:
    return pack(Kind.DATA, last=True, epoch=epoch, size=len(payload), place=0), memoryview(payload)


def test_links_introduce_themselves(pair: Pair) -> None:
    assert [link.peer for link in pair.links] == ["b" * 12, "a" * 12]
    assert all(link.arena is not None and link.arena.size == 1 << 20 for link in pair.links)


@pytest.mark.parametrize("size", [0, 1, 1000, (16 << 10) - 32, 16 << 10, 100_000, FRAME_BYTES_MAX])
def test_frames_arrive_whole_and_in_order(pair: Pair, size: int) -> None:
    sent = [np.random.default_rng(i).bytes(size) for i in range(3)]
    for payload in sent:
        pair.links[0].send(*data(1, payload))
        pair.links[0].send(pack(Kind.BELL, size=0, place=7))
    frames = pair.owners[1].frames
    pair.until(lambda: len(frames) == 6)
    assert [payload for frame, payload in frames if frame.kind == Kind.DATA] == sent


def test_a_half_sent_frame_is_finished_and_unsent_ones_are_dropped(pair: Pair) -> None:
    sender, receiver = pair.links
    for i in range(4):
        sender.send(*data(1, bytes([i]) * FRAME_BYTES_MAX))
    assert not sender.idle
    sender.abandon()
    sender.send(*data(2, b"new"))
    receiver.abandon()
    frames = pair.owners[1].frames
    pair.until(lambda: any(frame.epoch == 2 for frame, _ in frames))
    assert frames[-1][1] == b"new"
    assert len(frames) < 5
    assert all(payload == bytes([i]) * FRAME_BYTES_MAX for i, (_, payload) in enumerate(frames[:-1]))


def test_half_received_payload_runs_aside(pair: Pair) -> None:
    """The buffer of the old epoch is not written any more once it has been left."""
    sender, receiver = pair.links
    buffer = bytearray(FRAME_BYTES_MAX)
    pair.owners[1].payload_target = lambda link, frame: memoryview(buffer)[: frame.size]
    sender.send(*data(1, b"\1" * FRAME_BYTES_MAX))
    receiver.on_event(select.EPOLLIN)
    written = buffer.count(1)
    assert 0 < written < FRAME_BYTES_MAX
    receiver.abandon()
    frames = pair.owners[1].frames
    pair.until(lambda: len(frames) == 1)
    assert buffer.count(1) == written
    sender.send(*data(2, b"new"))
    pair.until(lambda: len(frames) == 2)
    assert frames[-1][1] == b"new"


def test_slots_of_dropped_frames_are_free_again_and_credits_are_kept(pair: Pair) -> None:
    sender = pair.links[0]
    sender.use_ring(0)
    sender.send(*data(1, b"x" * FRAME_BYTES_MAX))  # the kernel takes a part
    for _ in range(SLOTS):
        slot = sender.free.pop()
        sender.send(pack(Kind.SHARED, last=True, epoch=1, size=8, place=slot), slot=slot)
    sender.credit(3 * SLOT_BYTES)
    sender.abandon()
    assert sorted(sender.free) == [i * SLOT_BYTES for i in range(SLOTS)]
    frames = pair.owners[1].frames
    pair.until(lambda: len(frames) == 2)
    assert [frame.kind for frame, _ in frames] == [Kind.DATA, Kind.CREDIT]


@pytest.mark.parametrize("bad", [HEADER.pack(99, 0, 0, 1, 1, 1, 0, 0), HEADER.pack(2, 0, 0, 1, 1, 1, 1 << 40, 0)])
def test_a_member_that_sends_nonsense_is_hung_up_on(pair: Pair, bad: bytes) -> None:
    pair.links[0].send(bad)
    pair.until(lambda: bool(pair.owners[1].broken))
    assert pair.links[1].dead
    assert pair.owners[1].frames == []


def test_without_the_secret_no_frame_is_parsed() -> None:
    pair = Pair((SECRET, b"t" * 32))
    try:
        pair.until(lambda: all(link.dead for link in pair.links))
        for owner in pair.owners:
            assert (owner.up, owner.frames) == (False, [])
            assert "does not know the job's secret" in owner.broken[0]
    finally:
        pair.close()
