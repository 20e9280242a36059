"""Bells: frames without payload by which the members of a group say that they have come to a point."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from elaswave.communicator.frames import Kind, pack

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
    mesh = group.mesh
    bells, places = mesh.bells, mesh.places
    missing = [(peer, group.id, group.epoch, tag) for peer in peers]
    keys = list(missing)

    def all_here() -> bool:
        while missing and bells[missing[-1]]:
            missing.pop()
        return not missing

    mesh.wait(all_here, what=lambda: f"group {group.name}, members {[key[0] for key in missing]}")
    found = []
    for key in keys:
        del bells[key]
        found.append(places.pop(key))
    return found
