"""What a worker holds of the state: only whole layouts are on offer, and shards travel in pieces of buckets."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elaswave.runtime.holding import Holding, collect, spread
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine, digest
from elaswave.zero.layout import Range, cut

SIZE = 20


@st.composite
def pieces(draw: st.DrawFn) -> list[Range]:
    """Ascending disjoint ranges; some empty, some side by side."""
    bounds = sorted(draw(st.lists(st.integers(0, SIZE), max_size=8)))
    return list(zip(bounds[::2], bounds[1::2], strict=False))


@given(pieces())
def test_what_is_spread_is_what_was_collected(ranges: list[Range]):
    flat = torch.arange(SIZE)
    values = collect(flat, ranges)
    assert values.tolist() == [i for start, stop in ranges for i in range(start, stop)]
    out = torch.full((SIZE,), -1)
    spread(values, ranges, out)
    inside = {i for start, stop in ranges for i in range(start, stop)}
    assert out.tolist() == [i if i in inside else -1 for i in range(SIZE)]


def test_a_single_piece_is_not_copied():
    flat = torch.arange(SIZE)
    view = collect(flat, [(3, 7)])
    assert view.data_ptr() == flat[3:].data_ptr()
    view.fill_(-5)  # as a reduce-scatter does that writes to its place at once
    before = flat.clone()
    spread(view, [(3, 7)], flat)
    assert torch.equal(flat, before)


def test_several_pieces_are_copied():
    flat = torch.arange(SIZE)
    collect(flat, [(0, 2), (5, 6)]).fill_(-5)
    assert flat.tolist() == list(range(SIZE))
    assert collect(flat, []).shape == (0,)


class States:
    """Versions of one shard."""

    def __init__(self, **versions: torch.Tensor) -> None:
        self._slots = {int(name[1:]): SimpleNamespace(tensors={"master": values}) for name, values in versions.items()}

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(self._slots)

    def state(self, version: int) -> Any:
        return self._slots[version]


LAYOUT = cut([8, 6], 2, chunk=1)
FLAT = torch.arange(14.0)


def shard(index: int, factor: float = 1.0) -> torch.Tensor:
    return torch.cat([FLAT[start:stop] for start, stop in LAYOUT.ranges(index)]) * factor


def holding(*, whole: bool = True) -> Holding:
    """The second of two shards, and a copy of the first."""
    copied = Offer(layout_epoch=7, num_shards=2, shard=0, version=4, owner=False)
    pool: Any = SimpleNamespace(copies={0: States(v4=shard(0))}, holdings=lambda: (copied,))
    optimizer: Any = States(v4=shard(1), v3=shard(1, 0.5))
    return Holding(
        number=7, index=1, layout=LAYOUT, optimizer=optimizer, pool=pool, reduced=torch.empty(0), whole=whole
    )


def test_a_whole_layout_offers_its_shard_at_every_version_and_its_copies():
    offers = [(offer.shard, offer.version, offer.owner) for offer in holding().holdings()]
    assert offers == [(1, 4, True), (1, 3, True), (0, 4, False)]
    assert {(offer.layout_epoch, offer.num_shards) for offer in holding().holdings()} == {(7, 2)}


def test_a_layout_that_is_not_proved_whole_offers_nothing():
    assert holding(whole=False).holdings() == []


def test_own_shard_and_copies_are_found_by_shard_and_version():
    held = holding()
    assert torch.equal(held.part(1, 3).tensors["master"], shard(1, 0.5))
    assert torch.equal(held.part(0, 4).tensors["master"], shard(0))
    assert held.part(0, 4).ranges == LAYOUT.ranges(0)
    with pytest.raises(KeyError):
        held.state(0, 3)
    with pytest.raises(KeyError):
        held.state(1, 2)


def test_digests_of_all_shards_are_the_digest_of_the_whole():
    held = holding()
    assert combine([held.digest(0, 4), held.digest(1, 4)]) == digest(((0, 14),), {"master": FLAT})
    held.state(1, 4).tensors["master"][2] += 1
    assert combine([held.digest(0, 4), held.digest(1, 4)]) != digest(((0, 14),), {"master": FLAT})


def test_the_last_three_announcements_are_remembered():
    held = holding()
    for version in (1, 2, 3, 4):
        held.record(version, [version, version + 1])
    assert held.digests == {2: (2, 3), 3: (3, 4), 4: (4, 5)}
    held.record(3, [0, 0])
    assert held.digests == {2: (2, 3), 3: (0, 0), 4: (4, 5)}
