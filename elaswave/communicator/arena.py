"""Memory that a worker shares with the other workers of its host, read-only for them.

Pages come into being when they are first written, so the arena may be far larger than what is used of it.
"""

import mmap
import os

import numpy as np

from elaswave.errors import ProtocolError

SLOT_BYTES = 256 << 10
SLOTS = 8
RING_BYTES = SLOT_BYTES * SLOTS
STAGE_BYTES = 4 << 20
STAGES = 2
REGION_BYTES = STAGE_BYTES * STAGES
RINGS_MAX = 256
REGIONS_MAX = 32
ARENA_BYTES = RINGS_MAX * RING_BYTES + REGIONS_MAX * REGION_BYTES


class Arena:
    """This worker's shared memory: a ring of slots per link, and a region of staging areas per group."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("elaswave", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ARENA_BYTES)
        self._map = mmap.mmap(self.fd, ARENA_BYTES)
        self.bytes = np.frombuffer(self._map, np.uint8)
        self._rings = [i * RING_BYTES for i in reversed(range(RINGS_MAX))]
        base = RINGS_MAX * RING_BYTES
        self._regions = [base + i * REGION_BYTES for i in reversed(range(REGIONS_MAX))]

    def take_ring(self) -> int | None:
        """Offset of a free ring; None when all are in use."""
        return self._rings.pop() if self._rings else None

    def give_ring(self, offset: int) -> None:
        self._rings.append(offset)

    def take_region(self) -> int:
        """Offset of a free region.

        Raises:
            ValueError: all are in use.
        """
        if not self._regions:
            raise ValueError(f"a worker can be in {REGIONS_MAX} groups that share memory, not more")
        return self._regions.pop()

    def give_region(self, offset: int) -> None:
        self._regions.append(offset)

    def close(self) -> None:
        release(self._map, self)
        os.close(self.fd)


class PeerArena:
    """Another worker's arena, mapped read-only."""

    def __init__(self, fd: int, size: int) -> None:
        if os.fstat(fd).st_size < size or not 0 < size <= ARENA_BYTES:
            raise ProtocolError(f"an arena of {size} bytes is announced, its file has {os.fstat(fd).st_size}")
        self.size = size
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        release(self._map, self)


def release(mapping: mmap.mmap, owner: Arena | PeerArena) -> None:
    """Unmap as soon as the last array that looks into the mapping is gone."""
    owner.bytes = np.empty(0, np.uint8)
    try:
        mapping.close()
    except BufferError:  # an array still looks into it; the map goes with that array
        return
