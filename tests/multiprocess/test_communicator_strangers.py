"""Strangers on the listeners of working meshes: nothing of theirs is parsed, and the members do not notice."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from support.ranks import SECRET, Rank, Ranks, start, worker_id

from elaswave.communicator import doors
from elaswave.communicator import link as link_module
from elaswave.communicator.frames import HEADER_BYTES, Kind, pack
from elaswave.coordination.handshake import HELLO_BYTES, MAGIC, TAG_BYTES, Handshake

MEMBERS = 2
STRANGERS_MAX = 6
TIMEOUT_S = 20.0
FAMILIES = ("unix", "tcp")


def body(me: Rank) -> dict:
    """Sum in every view; between views only strangers talk. Says whose bytes were parsed."""
    doors.STRANGERS_MAX, doors.STRANGER_TIMEOUT_S = STRANGERS_MAX, 0.5
    parsed: list[link_module.Link] = []
    for name in ("_parse", "_accept_hello"):
        _spy(name, parsed)
    most, broken = 0, []
    me.mesh._on_broken = lambda peer, why: broken.append([peer, why])
    for turn in range(3):
        group = me.enter()
        for size in (10, 50_000):
            x = torch.full((size,), me.rank + 1)
            group.all_reduce(x)
            assert int(x.sum()) == size * 3
        me.tell(turn=turn)
        most = max(most, len(me.mesh._doors.strangers))
    strangers = [link.peer for link in parsed if link not in me.mesh.links.values()]
    return {"strangers parsed": strangers, "broken": broken, "links": sorted(me.mesh.links), "most": most}


def _spy(name: str, parsed: list[link_module.Link]) -> None:
    original = getattr(link_module.Link, name)

    def spied(link: link_module.Link, data: bytes) -> None:
        parsed.append(link)
        original(link, data)

    setattr(link_module.Link, name, spied)


@contextmanager
def members() -> Iterator[Ranks]:
    """Two members that work; afterwards they must have worked on, and have parsed nothing but each other's bytes."""
    with start(MEMBERS, body) as ranks:
        _view(ranks, 0)
        yield ranks
        _view(ranks, 1)
        _view(ranks, 2)
        for rank in range(MEMBERS):
            result = ranks.result(rank)
            assert result.pop("most") <= STRANGERS_MAX
            assert result == {"strangers parsed": [], "broken": [], "links": [worker_id(1 - rank)]}


def _view(ranks: Ranks, turn: int) -> None:
    ranks.view(range(MEMBERS))
    for rank in range(MEMBERS):
        assert ranks.read(rank) == {"turn": turn}


def dial(ranks: Ranks, rank: int, family: str) -> socket.socket:
    address = ranks.addresses[worker_id(rank)]
    sock = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
    sock.settimeout(TIMEOUT_S)
    sock.connect(f"\0{address['unix']}" if family == "unix" else tuple(address["tcp"]))
    return sock


def read(sock: socket.socket, num_bytes: int) -> bytes:
    """At most that many bytes; fewer when the other side hangs up."""
    data = b""
    while len(data) < num_bytes:
        try:
            more = sock.recv(num_bytes - len(data))
        except ConnectionResetError:
            break
        if not more:
            break
        data += more
    return data


def garbage(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: elaswave\r\n\r\n")


def large_garbage(sock: socket.socket) -> None:
    try:
        sock.sendall(struct.pack("<Q", 0xFFFF_FFFF_FFFF_FFFF) * 200_000)
    except (BrokenPipeError, ConnectionResetError):
        pass


def silence(sock: socket.socket) -> None:
    pass


def half_a_handshake(sock: socket.socket) -> None:
    sock.sendall(MAGIC + bytes(16))
    assert read(sock, HELLO_BYTES).startswith(MAGIC)


def another_secret(sock: socket.socket) -> None:
    shake = Handshake(bytes(32), initiator=True, context=b"link")
    sock.sendall(shake.hello())
    answer = shake.receive(read(sock, HELLO_BYTES))
    assert answer is not None
    sock.sendall(answer + pack(Kind.HELLO, size=12, place=0) + b"0" * 12)


def its_own_proof(sock: socket.socket) -> None:
    """Send the member's own proof back to it."""
    sock.sendall(MAGIC + bytes(16))
    sock.sendall(read(sock, HELLO_BYTES + TAG_BYTES)[HELLO_BYTES:] + pack(Kind.BELL, size=0, place=0))


def another_purpose(sock: socket.socket) -> None:
    """Knows the secret, but has come for something else than a link."""
    shake = Handshake(SECRET, initiator=True, context=b"control")
    sock.sendall(shake.hello())
    answer = shake.receive(read(sock, HELLO_BYTES))
    assert answer is not None
    sock.sendall(answer)


STRANGERS = (garbage, large_garbage, silence, half_a_handshake, another_secret, its_own_proof, another_purpose)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_not_listened_to(stranger: Callable[[socket.socket], None], family: str) -> None:
    """It gets no more than a nonce and a proof over its own, and is hung up on, at the latest after a time."""
    with members() as ranks:
        for rank in range(MEMBERS):
            with dial(ranks, rank, family) as sock:
                stranger(sock)
                assert len(read(sock, 4096)) <= HELLO_BYTES + TAG_BYTES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stranger_that_leaves_in_the_middle_is_forgotten(family: str) -> None:
    with members() as ranks:
        for rank in range(MEMBERS):
            for num_bytes in (0, 1, HELLO_BYTES - 1, HELLO_BYTES):
                with dial(ranks, rank, family) as sock:
                    sock.sendall((MAGIC + bytes(16))[:num_bytes])


@pytest.mark.parametrize("family", FAMILIES)
def test_strangers_are_few_at_a_time(family: str) -> None:
    """Those that come while there are enough are hung up on, and get nothing."""
    with members() as ranks, ExitStack() as stack:
        socks = [stack.enter_context(dial(ranks, 0, family)) for _ in range(4 * STRANGERS_MAX)]
        heard = [len(read(sock, 4096)) for sock in socks]
        assert set(heard) <= {0, HELLO_BYTES}
        assert heard.count(0) > 0


def test_a_member_that_knows_the_secret_but_sends_nonsense_is_hung_up_on() -> None:
    """An authenticated connection under a name of nobody: its hello must be one, and its frames within bounds."""
    with start(1, lambda me: bool(me.enter()), timeout_s=TIMEOUT_S) as ranks, dial(ranks, 0, "unix") as sock:
        shake = Handshake(SECRET, initiator=True, context=b"link")
        sock.sendall(shake.hello())
        # the member answers while it waits for its first view
        answer = shake.receive(read(sock, HELLO_BYTES))
        assert answer is not None
        sock.sendall(answer + pack(Kind.DATA, size=12, place=0) + b"0" * 12)
        assert len(read(sock, 4096)) <= TAG_BYTES + HEADER_BYTES + 12
        ranks.view([0])
        assert ranks.result(0) is True
