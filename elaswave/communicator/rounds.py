"""One round among the members of a group: bells, which carry only a place, and small payloads."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from elaswave.communicator.frames import Kind, pack
from elaswave.communicator.inbox import Told
from elaswave.errors import ProtocolError

if TYPE_CHECKING:
    from elaswave.communicator.group import Group


def ring(group: "Group", tag: int, peers: Iterable[str], place: int = 0) -> None:
    """Tell `peers` that this member is at `tag`, and where in its arena to read."""
    header = pack(Kind.BELL, group=group.id, epoch=group.epoch, tag=tag, size=0, place=place)
    links = group.mesh.links
    for peer in peers:
        link = links.get(peer)
        if link is not None:
            link.send(header)


def hear(group: "Group", tag: int, peers: Sequence[str]) -> list[int]:
    """Wait until all `peers` are at `tag`; returns the place that each told.

    Raises:
        ProtocolError: a peer has told something else.
    """
    places = []
    for peer, place in zip(peers, _take(group, tag, peers), strict=True):
        if not isinstance(place, int):
            raise ProtocolError(f"worker {peer} sends bytes where group {group.name} expects a place")
        places.append(place)
    return places


def tell(group: "Group", tag: int, peers: Sequence[str], payload: bytes) -> None:
    """Send `peers` at most `INLINE_BYTES_MAX` bytes."""
    size = len(payload)
    header = pack(Kind.NOTE, group=group.id, epoch=group.epoch, tag=tag, size=size, place=0)
    frame, links = header + payload, group.mesh.links
    for peer in peers:
        link = links.get(peer)
        if link is not None:
            link.send(frame)


def collect(group: "Group", tag: int, peers: Sequence[str], sizes: Sequence[int]) -> list[bytes | memoryview]:
    """Wait for what each of `peers` tells at `tag`, of as many bytes as `sizes` says.

    Raises:
        ProtocolError: a peer has told something of another size.
    """
    payloads: list[bytes | memoryview] = []
    for peer, payload, size in zip(peers, _take(group, tag, peers), sizes, strict=True):
        if isinstance(payload, int) or len(payload) != size:
            raise ProtocolError(f"worker {peer} does not send the {size} bytes that group {group.name} expects")
        payloads.append(payload)
    return payloads


def _take(group: "Group", tag: int, peers: Sequence[str]) -> list[Told]:
    """What each of `peers` tells at `tag`, once all have."""
    number, epoch, told = group.id, group.epoch, group.mesh.inbox.told
    keys = [(peer, number, epoch, tag) for peer in peers]

    def missing() -> list[str]:
        return [key[0] for key in keys if key not in told]

    if missing():
        group.mesh.wait(
            lambda: all(key in told for key in keys),
            what=lambda: f"group {group.name}, members {missing()}",
            needs=missing,
        )
    return [told.pop(key) for key in keys]
