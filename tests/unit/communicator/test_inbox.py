"""The inbox lets nothing stale in, keeps what is early, and keeps no more than it must."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from elaswave.communicator import inbox as inbox_module
from elaswave.communicator.frames import Frame, Kind
from elaswave.communicator.inbox import Inbox
from elaswave.communicator.link import Introduction, Link
from elaswave.coordination.handshake import Handshake
from elaswave.errors import ProtocolError

PEER = "a" * 12
GROUP, TAG = 7, 3


class Nobody:
    """An owner that is never called."""


@pytest.fixture
def link() -> Iterator[Link]:
    near, far = socket.socketpair()
    made = Link(Nobody(), near, Handshake(b"s" * 32, initiator=True, context=b"link"), Introduction(PEER, 0, 0))  # type: ignore[arg-type]
    made.peer = PEER
    yield made
    made.hang_up()
    far.close()


def frame(kind: int, epoch: int, *, tag: int = TAG, size: int = 0, place: int = 0) -> Frame:
    return Frame(kind, True, GROUP, epoch, tag, size, place)


def entered(epoch: int) -> Inbox:
    inbox = Inbox()
    inbox.enter(epoch, {PEER})
    return inbox


def test_stale_frames_are_not_let_in(link: Link) -> None:
    inbox = entered(5)
    buffer = np.zeros(4, np.uint8)
    inbox.post((PEER, GROUP, 5, TAG), buffer)
    inbox.arrived(link, frame(Kind.DATA, 4, size=4), b"old!")
    inbox.arrived(link, frame(Kind.NOTE, 4, size=4), b"old!")
    inbox.arrived(link, frame(Kind.BELL, 4, place=64), None)
    assert inbox.told == {}
    assert not buffer.any()


def test_newer_frames_wait_for_their_epoch_and_older_ones_are_forgotten(link: Link) -> None:
    inbox = entered(5)
    for epoch in (5, 6):
        inbox.arrived(link, frame(Kind.NOTE, epoch, size=1), b"n")
        inbox.arrived(link, frame(Kind.DATA, epoch, tag=1, size=2), bytes([epoch, epoch]))
    assert inbox.ahead == 6
    inbox.enter(6, {PEER})
    assert inbox.told == {(PEER, GROUP, 6, TAG): b"n"}
    buffer = np.zeros(2, np.uint8)
    assert inbox.post((PEER, GROUP, 6, 1), buffer).done
    assert buffer.tolist() == [6, 6]
    assert not inbox.post((PEER, GROUP, 5, 1), buffer).done


def test_who_is_no_member_is_not_ahead(link: Link) -> None:
    inbox = Inbox()
    inbox.enter(5, set())
    inbox.arrived(link, frame(Kind.BELL, 9), None)
    assert inbox.ahead == 0


@pytest.mark.parametrize("size", [3, 5])
def test_another_size_than_asked_for_is_refused(link: Link, size: int) -> None:
    inbox = entered(1)
    inbox.post((PEER, GROUP, 1, TAG), np.zeros(4, np.uint8))
    with pytest.raises(ProtocolError, match=f"sends {size} bytes where 4 were asked for"):
        inbox.arrived(link, frame(Kind.DATA, 1, size=size), bytes(size))


def test_what_nobody_asks_for_is_bounded(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "TOLD_MAX", 10)
    monkeypatch.setattr(inbox_module, "STASH_BYTES_MAX", 10)
    inbox = entered(1)
    for tag in range(10):
        inbox.arrived(link, frame(Kind.BELL, 1, tag=tag), None)
    with pytest.raises(ProtocolError, match="more than 10 rounds"):
        inbox.arrived(link, frame(Kind.BELL, 1, tag=10), None)
    inbox.arrived(link, frame(Kind.DATA, 1, size=10), bytes(10))
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        inbox.arrived(link, frame(Kind.DATA, 1, size=1), bytes(1))


def test_a_slot_is_given_back_once_and_only_if_it_was_given(link: Link) -> None:
    inbox = entered(1)
    credit = frame(Kind.CREDIT, 0, place=0)
    with pytest.raises(ProtocolError, match="does not have"):
        inbox.arrived(link, credit, None)
    link.use_ring(0)
    with pytest.raises(ProtocolError, match="twice"):
        inbox.arrived(link, credit, None)
    link.free.remove(0)
    inbox.arrived(link, credit, None)
    assert 0 in link.free
