"""The frames that travel on a link: 32 bytes of header, and for DATA and NOTE the payload behind it."""

import struct
from typing import NamedTuple

from elaswave.errors import ProtocolError

HEADER = struct.Struct("<BBHIIIQQ")
HEADER_BYTES = HEADER.size
FRAME_BYTES_MAX = 1 << 20
INLINE_BYTES_MAX = 32 << 10
ID_BYTES = 12
LAST = 1


class Kind:
    """What a frame says; the comment names its `size` and `place`. Not an enum, whose members are slow to reach."""

    HELLO = 1  # size of the worker id that follows; bytes of the sender's arena
    DATA = 2  # bytes that follow
    SHARED = 3  # bytes in the sender's arena; their offset there
    BELL = 4  # 0; an offset in the sender's arena that the receiver may read from now on
    CREDIT = 5  # 0; offset of a slot of the receiver's arena that may be filled again
    NOTE = 6  # bytes that follow, few, and the only ones of their tag; 0


KINDS = frozenset(range(Kind.HELLO, Kind.NOTE + 1))
CARRIERS = frozenset((Kind.DATA, Kind.NOTE))
"""Frames with payload behind them."""


class Frame(NamedTuple):
    """A parsed header."""

    kind: int
    last: bool
    group: int
    epoch: int
    tag: int
    size: int
    place: int


def pack(
    kind: int, *, last: bool = False, group: int = 0, epoch: int = 0, tag: int = 0, size: int, place: int
) -> bytes:
    return HEADER.pack(kind, LAST if last else 0, 0, group, epoch, tag, size, place)


def parse(buffer: bytes, offset: int, arena_bytes: int) -> Frame:
    """Read a header and check every field against what may be read behind it.

    Args:
        buffer: at least `HEADER_BYTES` from `offset` on.
        offset: where the header begins.
        arena_bytes: size of the sender's arena as mapped here; 0 without one.

    Raises:
        ProtocolError: the frame points outside of what it may.
    """
    kind, flags, _, group, epoch, tag, size, place = HEADER.unpack_from(buffer, offset)
    if kind not in KINDS:
        raise ProtocolError(f"unknown frame kind {kind}")
    if kind in CARRIERS and size > (bound := FRAME_BYTES_MAX if kind == Kind.DATA else INLINE_BYTES_MAX):
        raise ProtocolError(f"a frame of {size} bytes; the bound is {bound}")
    if kind == Kind.SHARED and (not size or size > FRAME_BYTES_MAX or place + size > arena_bytes):
        raise ProtocolError(f"{size} bytes at {place} are not in an arena of {arena_bytes}")
    return Frame(kind, bool(flags & LAST), group, epoch, tag, size, place)
