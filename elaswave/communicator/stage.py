"""A group's staging areas in shared memory.

A collective proceeds in rounds: write into an area, tell all members where, hear of all, read theirs. Hearing of
all in one round means that they have read what was written in the round before. Two areas in turn are therefore
never written while someone reads them. Only an edit breaks that chain; so the first round of an epoch comes after
a barrier, which no member passes that may still be reading.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from elaswave.communicator.arena import STAGE_BYTES, STAGES
from elaswave.errors import ProtocolError

if TYPE_CHECKING:
    from elaswave.communicator.mesh import Mesh


class Stage:
    """Two areas of this worker's arena that the other members read.

    Attributes:
        entered: the barrier of this epoch is done.
        place: offset in this worker's arena of the area that was written last.
    """

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh
        self._region: int | None = None
        self._turn = 0
        self.place = 0
        self.reset()

    def reset(self) -> None:
        """A new epoch has begun."""
        self.entered = False
        self._usable: bool | None = None

    def usable(self, peers: Sequence[str]) -> bool:
        """Whether all members share memory; as sharing is mutual, all come to the same answer."""
        if self._usable is None:
            if self._region is None:
                self._region = self._mesh.arena.take_region()
            links = self._mesh.links
            self._usable = all(peer in links and links[peer].arena is not None for peer in peers)
        return self._usable

    def turn(self) -> tuple[np.ndarray, int]:
        """The area to write in this round, and its offset in this worker's arena."""
        assert self._region is not None
        self._turn = (self._turn + 1) % STAGES
        self.place = self._region + self._turn * STAGE_BYTES
        return self._mesh.arena.bytes[self.place : self.place + STAGE_BYTES], self.place

    def of(self, peer: str, place: int) -> np.ndarray:
        """Another member's area, at the place that it told.

        Raises:
            PeerLost: its link broke, and its memory was let go of, before it could be read.
            ProtocolError: the place is not in its arena.
        """
        arena = self._mesh.arena_of(peer)
        if arena is None:  # only a newer view can end this round
            self._mesh.wait(lambda: False, what=lambda: f"a view without worker {peer}, whose link broke")
        if arena is None or place + STAGE_BYTES > arena.size:
            raise ProtocolError(f"worker {peer} tells of a staging area outside of its arena")
        return arena.bytes[place : place + STAGE_BYTES]

    def close(self) -> None:
        if self._region is not None:
            self._mesh.arena.give_region(self._region)
            self._region = None
