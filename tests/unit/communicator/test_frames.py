"""Headers of frames: what is packed is parsed, and whatever points outside of what may be read is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.communicator.frames import (
    FRAME_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    INLINE_BYTES_MAX,
    KINDS,
    Kind,
    pack,
    parse,
)
from elaswave.errors import ProtocolError

ARENA_BYTES = 8 << 20
U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


def header(kind: int, size: int = 0, place: int = 0, flags: int = 0) -> bytes:
    return HEADER.pack(kind, flags, 0, 1, 2, 3, size, place)


@settings(deadline=None, max_examples=100)
@given(st.booleans(), U32, U32, U32, st.integers(0, FRAME_BYTES_MAX), U64, st.integers(0, 40))
def test_packed_is_parsed(last: bool, group: int, epoch: int, tag: int, size: int, place: int, offset: int) -> None:
    packed = pack(Kind.DATA, last=last, group=group, epoch=epoch, tag=tag, size=size, place=place)
    assert len(packed) == HEADER_BYTES
    assert parse(bytes(offset) + packed, offset, 0) == (Kind.DATA, last, group, epoch, tag, size, place)


@pytest.mark.parametrize("kind", [0, max(KINDS) + 1, 255])
def test_unknown_kinds_are_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame kind {kind}"):
        parse(header(kind), 0, ARENA_BYTES)


@pytest.mark.parametrize(("kind", "bound"), [(Kind.DATA, FRAME_BYTES_MAX), (Kind.NOTE, INLINE_BYTES_MAX)])
def test_oversized_payload_is_refused(kind: int, bound: int) -> None:
    assert parse(header(kind, size=bound), 0, ARENA_BYTES).size == bound
    for size in (bound + 1, 1 << 32, (1 << 64) - 1):
        with pytest.raises(ProtocolError, match=f"a frame of {size} bytes; the bound is {bound}"):
            parse(header(kind, size=size), 0, ARENA_BYTES)


@pytest.mark.parametrize(
    ("size", "place", "arena_bytes"),
    [
        (0, 0, ARENA_BYTES),
        (1, ARENA_BYTES, ARENA_BYTES),
        (2, ARENA_BYTES - 1, ARENA_BYTES),
        (FRAME_BYTES_MAX + 1, 0, ARENA_BYTES),
        (1, (1 << 64) - 1, ARENA_BYTES),
        ((1 << 64) - 1, 1, ARENA_BYTES),
        (1, 0, 0),
    ],
)
def test_shared_payload_outside_of_the_arena_is_refused(size: int, place: int, arena_bytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"are not in an arena of {arena_bytes}"):
        parse(header(Kind.SHARED, size=size, place=place), 0, arena_bytes)


def test_shared_payload_up_to_the_last_byte_is_accepted() -> None:
    assert parse(header(Kind.SHARED, size=8, place=ARENA_BYTES - 8), 0, ARENA_BYTES).place == ARENA_BYTES - 8


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_bytes_are_refused_or_stay_within_bounds(data: bytes) -> None:
    try:
        frame = parse(data, 0, ARENA_BYTES)
    except ProtocolError:
        return
    assert frame.kind in KINDS
    if frame.kind == Kind.DATA:
        assert frame.size <= FRAME_BYTES_MAX
    if frame.kind == Kind.SHARED:
        assert 0 < frame.size <= FRAME_BYTES_MAX
        assert frame.place + frame.size <= ARENA_BYTES
