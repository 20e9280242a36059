"""One round among the members of a group: bells, which carry only a place, and small payloads."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from elaswave.communicator.frames import Kind, pack
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
    """Wait until all `peers` are at `tag`; returns the place that each told."""
    number, epoch, bells = group.id, group.epoch, group.mesh.bells
    keys = [(peer, number, epoch, tag) for peer in peers]
    _await(group, keys, bells)
    return [bells.pop(key) for key in keys]


def tell(group: "Group", tag: int, peers: Sequence[str], payload: bytes) -> None:
    """Send `peers` at most `INLINE_BYTES_MAX` bytes."""
    size = len(payload)
    header = pack(Kind.DATA, last=True, group=group.id, epoch=group.epoch, tag=tag, size=size, place=0)
    frame, links = header + payload, group.mesh.links
    for peer in peers:
        link = links.get(peer)
        if link is not None:
            link.send(frame)


def collect(group: "Group", tag: int, peers: Sequence[str], sizes: Sequence[int]) -> list[np.ndarray]:
    """Wait for what each of `peers` tells at `tag`, of as many bytes as `sizes` says; read-only.

    Raises:
        ProtocolError: a peer has told something of another size.
    """
    number, epoch, inbox = group.id, group.epoch, group.mesh.inbox
    keys = [(peer, number, epoch, tag) for peer in peers]
    _await(group, keys, inbox.early)
    payloads = []
    for key, size in zip(keys, sizes, strict=True):
        early = inbox.pop_early(key)
        if early is None or early.payload is None or not early.frame.last or early.frame.size != size:
            raise ProtocolError(f"worker {key[0]} does not send the {size} bytes that group {group.name} expects")
        payloads.append(np.frombuffer(early.payload, np.uint8))
    return payloads


def _await(group: "Group", keys: Sequence[tuple[str, int, int, int]], arrived: dict) -> None:
    for key in keys:
        if key not in arrived:
            break
    else:
        return

    def all_here() -> bool:
        return all(key in arrived for key in keys)

    def missing() -> str:
        return f"group {group.name}, members {[key[0] for key in keys if key not in arrived]}"

    group.mesh.wait(all_here, what=missing)
