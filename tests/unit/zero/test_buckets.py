"""Buckets: units are cut over their own members only, and what moves between buckets disturbs nothing else."""

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from elaswave.config import ZeroLayout
from elaswave.numerics import square_sum_limbs
from elaswave.zero.layout import Layout, Ranges, addends, count, cut, diff, intersect, join, route, supply

MEMBERS_MAX = 6
KINDS = st.sampled_from(list(ZeroLayout))
CHUNKS = st.sampled_from([1, 7, 64, 256])
SIZES = st.lists(st.integers(0, 2000), min_size=1, max_size=8)


@st.composite
def layouts(draw: st.DrawFn, sizes: Sequence[int], chunk: int | None = None) -> Layout:
    """Any layout of these units: buckets of random units over random members."""
    number = draw(st.integers(1, MEMBERS_MAX))
    homes = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    buckets = []
    for home in sorted(set(homes)):
        members = draw(st.sets(st.integers(0, number - 1), min_size=1))
        buckets.append(([unit for unit, other in enumerate(homes) if other == home], sorted(members)))
    return cut(sizes, number, draw(KINDS), draw(CHUNKS) if chunk is None else chunk, buckets)


any_layout = SIZES.flatmap(layouts)


def elements(ranges: Ranges) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in ranges] or [np.arange(0)])


@given(any_layout)
def test_every_element_belongs_to_exactly_one_member_of_its_bucket(layout):
    owned = [elements(layout.ranges(shard)) for shard in range(layout.num_shards)]
    assert sorted(np.concatenate(owned)) == list(range(layout.num_elements))
    for bucket, (_, members) in enumerate(layout.buckets):
        spread = [count(intersect(join(ranges), layout.bucket_ranges(bucket))) for ranges in layout.shards]
        assert sum(spread[member] for member in members) == sum(spread) == layout.bucket_size(bucket)


@given(any_layout)
def test_ranges_ascend_and_are_whole_chunks_inside_one_unit(layout):
    ends = list(itertools.accumulate(layout.unit_sizes))
    for ranges in layout.shards:
        assert list(ranges) == sorted(ranges)
        for start, stop in ranges:
            unit = next(i for i, end in enumerate(ends) if start < end)
            begin = ends[unit] - layout.unit_sizes[unit]
            assert (start - begin) % layout.chunk == 0
            assert stop == ends[unit] or (stop < ends[unit] and (stop - begin) % layout.chunk == 0)


@given(any_layout)
def test_a_bucket_can_be_reduced_into_shards_and_gathered_from_them(layout):
    flat = np.arange(layout.num_elements)
    shards = [np.full(layout.size(shard), -1) for shard in range(layout.num_shards)]
    gathered = np.full(layout.num_elements, -1)
    for bucket, (_, members) in enumerate(layout.buckets):
        whole = flat[elements(layout.bucket_ranges(bucket))]
        assert len(whole) == layout.bucket_size(bucket)
        spans = layout.spans(bucket)
        assert sorted(np.concatenate([elements(span) for span in spans])) == list(range(len(whole)))
        copy = np.full(len(whole), -1)
        for member, span in zip(members, spans, strict=True):
            part, room = whole[elements(span)], elements(dict(layout.pieces(member))[bucket])
            shards[member][room] = part
            copy[elements(span)] = shards[member][room]
        gathered[elements(layout.bucket_ranges(bucket))] = copy
    assert (gathered == flat).all()
    for shard, found in enumerate(shards):
        assert (found == elements(layout.ranges(shard))).all()
        taking_part = [bucket for bucket, (_, members) in enumerate(layout.buckets) if shard in members]
        assert [bucket for bucket, _ in layout.pieces(shard)] == taking_part


@given(any_layout)
def test_spans_and_pieces_have_no_seams(layout):
    found = [span for bucket in range(len(layout.buckets)) for span in layout.spans(bucket)]
    found += [ranges for shard in range(layout.num_shards) for _, ranges in layout.pieces(shard)]
    assert all(a[1] < b[0] for ranges in found for a, b in itertools.pairwise(ranges))


def test_one_bucket_of_everything_is_the_default():
    sizes = [1000, 0, 700]
    for kind in ZeroLayout:
        assert cut(sizes, 3, kind, 64) == cut(sizes, 3, kind, 64, [((0, 1, 2), (0, 1, 2))])


def test_a_contiguous_bucket_is_one_span_and_one_piece_per_member():
    layout = cut([1000] * 6, 4, "contiguous", 10, [((0, 1, 2), (0, 2)), ((3, 4, 5), (1, 3))])
    assert layout.spans(1) == (((0, 1500),), ((1500, 3000),))
    assert layout.pieces(3) == ((1, ((0, 1500),)),)


@given(any_layout)
def test_contiguous_buckets_are_balanced(layout):
    assume(layout.kind is ZeroLayout.CONTIGUOUS)
    for bucket, (_, members) in enumerate(layout.buckets):
        mean = layout.bucket_size(bucket) / len(members)
        assert all(abs(count(span) - mean) < 2 * layout.chunk for span in layout.spans(bucket))


@given(any_layout)
def test_interleaved_buckets_are_balanced_per_stretch_of_units(layout):
    assume(layout.kind is ZeroLayout.INTERLEAVED)
    for bucket, (units, members) in enumerate(layout.buckets):
        mean = layout.bucket_size(bucket) / len(members)
        stretches = 1 + sum(b - a > 1 for a, b in itertools.pairwise(units))
        assert all(abs(count(span) - mean) < 4 * stretches * layout.chunk for span in layout.spans(bucket))


def test_a_layout_travels_as_json():
    layout = cut([300, 20, 77], 3, "interleaved", 8, [((0, 2), (0, 1)), ((1,), (2,))])
    told = json.loads(json.dumps([layout.unit_sizes, layout.num_shards, layout.kind, layout.chunk, layout.buckets]))
    assert cut(*told) == layout
    assert hash(cut(*told)) == hash(layout)


def test_a_member_may_be_in_no_bucket_and_a_bucket_without_elements():
    layout = cut([512, 0], 3, "interleaved", 64, [((0,), (1,)), ((1,), (0,))])
    assert layout.shards == ((), ((0, 512),), ())
    assert (layout.pieces(0), layout.pieces(2)) == (((1, ()),), ())
    assert (layout.spans(1), layout.bucket_ranges(1)) == (((),), ())


@pytest.mark.parametrize(
    "buckets",
    [
        [((0,), (0, 1))],
        [((0, 1), (0,)), ((1,), (1,))],
        [((1, 0), (0,))],
        [((0, 1), (1, 0))],
        [((0, 1), (0, 2))],
        [((0, 1), (-1, 0))],
        [((0, 1), ())],
        [((0, 1, 2), (0,))],
    ],
)
def test_impossible_buckets_are_errors(buckets):
    with pytest.raises(ValueError, match="exactly one bucket"):
        cut([10, 10], 2, buckets=buckets)


@given(st.data())
def test_the_sum_of_squares_does_not_depend_on_buckets(data):
    layout = data.draw(layouts(data.draw(SIZES), 256))
    flat = torch.randn(layout.num_elements, generator=torch.Generator().manual_seed(1))
    whole = square_sum_limbs(flat, cut(layout.unit_sizes, 1).ranges(0))
    parts = [
        square_sum_limbs(torch.cat([flat[a:b] for a, b in ranges] or [flat[:0]]), ranges) for ranges in layout.shards
    ]
    assert tuple(sum(limb) for limb in zip(*parts, strict=True)) == whole


NAMES = [f"w{i}" for i in range(10)]


@st.composite
def held(draw: st.DrawFn) -> tuple[Layout, list[list[str]]]:
    """A layout, and some holders of each of its shards."""
    layout = draw(any_layout)
    some = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
    return layout, [draw(some) for _ in range(layout.num_shards)]


@given(held(), st.data())
def test_every_element_arrives_once_whatever_the_buckets(found, data):
    old, holders = found
    new = data.draw(layouts(old.unit_sizes))
    owners = data.draw(st.permutations(NAMES))[: new.num_shards]
    plan = route(old, new, holders, owners)
    assert [t.start for t in plan] == [0, *(t.stop for t in plan)][: len(plan)]
    assert (plan[-1].stop if plan else 0) == old.num_elements
    for t in plan:
        assert t.source in holders[t.shard]
        assert count(intersect(old.ranges(t.shard), [(t.start, t.stop)])) == t.stop - t.start
        assert count(intersect(new.ranges(owners.index(t.destination)), [(t.start, t.stop)])) == t.stop - t.start
        assert (t.source == t.destination) == (t.destination in holders[t.shard])


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=8),
    st.integers(1, 4),
    st.sampled_from([16, 48, 100]),
    st.data(),
)
def test_a_unit_that_changes_bucket_gives_each_new_member_its_share_and_moves_nothing_else(sizes, ways, grain, data):
    sizes, chunk = [size * grain for size in sizes], 16
    homes = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    moving = data.draw(st.integers(0, len(sizes) - 1))
    members = [list(range(ways)), list(range(ways, 2 * ways))]
    after = [side ^ (unit == moving) for unit, side in enumerate(homes)]
    old, new = (cut(sizes, 2 * ways, "interleaved", chunk, _sides(sides, members)) for sides in (homes, after))
    owners = [f"w{i}" for i in range(2 * ways)]
    moved = diff(old, new, [[owner] for owner in owners], owners)
    begin = sum(sizes[:moving])
    assert sum(t.stop - t.start for t in moved) == sizes[moving]
    assert all(begin <= t.start < t.stop <= begin + sizes[moving] for t in moved)
    assert len({t.source for t in moved}) == len({t.destination for t in moved}) == len(moved) <= ways
    assert all(abs(t.stop - t.start - sizes[moving] / ways) < 3 * chunk for t in moved)


def _sides(sides: Sequence[bool], members: Sequence[Sequence[int]]) -> list[tuple[list[int], Sequence[int]]]:
    """Two buckets; per unit the one it is in."""
    return [([unit for unit, other in enumerate(sides) if other == side], members[side]) for side in (False, True)]


def test_a_unit_of_equal_slices_moves_in_exactly_equal_parts():
    sizes = [4 * 512 * n for n in (3, 1, 2, 5)]
    sides = [(0, 1, 2, 3), (4, 5, 6, 7)]
    old = cut(sizes, 8, buckets=[((0, 1), sides[0]), ((2, 3), sides[1])])
    new = cut(sizes, 8, buckets=[((0,), sides[0]), ((1, 2, 3), sides[1])])
    owners = NAMES[:8]
    moved = diff(old, new, [[owner] for owner in owners], owners)
    assert [(t.source, t.destination, t.stop - t.start) for t in moved] == [
        (f"w{i}", f"w{i + 4}", 512) for i in range(4)
    ]


@given(held(), st.data())
def test_whatever_is_wanted_is_supplied_once_to_everyone_who_wants_it(found, data):
    old, holders = found
    wanted = {name: _some(data, old.num_elements) for name in data.draw(st.lists(st.sampled_from(NAMES), unique=True))}
    plan = supply(old, holders, wanted)
    assert plan == supply(old, holders, wanted)
    for name, ranges in wanted.items():
        mine = [t for t in plan if t.destination == name]
        assert mine == sorted(mine, key=lambda t: t.start)
        assert join((t.start, t.stop) for t in mine) == join(ranges)
        for t in mine:
            assert t.source in holders[t.shard]
            assert count(intersect(old.ranges(t.shard), [(t.start, t.stop)])) == t.stop - t.start
            assert (t.source == name) == (name in holders[t.shard])
    assert {t.destination for t in plan} <= set(wanted)


def _some(data: st.DataObject, size: int) -> Ranges:
    """Ascending disjoint ranges below `size`."""
    points = sorted(data.draw(st.sets(st.integers(0, size), max_size=8)))
    return tuple(zip(points[0::2], points[1::2], strict=False))


def test_several_holders_share_the_supply():
    old = cut([1024 * 4], 1)
    plan = supply(old, [["a", "b"]], {f"n{i}": ((0, 4096),) for i in range(4)})
    assert sorted(t.source for t in plan) == ["a", "a", "b", "b"]


def test_what_nobody_holds_cannot_be_supplied():
    old = cut([1024], 2)
    with pytest.raises(ValueError, match="shard 1"):
        supply(old, [["a"], []], {"n": ((0, 1024),)})
    assert len(supply(old, [["a"], []], {"n": ((0, 512),)})) == 1


@given(st.data())
def test_addends_are_all_that_is_held_of_what_is_wanted(data):
    held, wanted = ({name: _some(data, 50) for name in NAMES[:3]} for _ in range(2))
    found = np.zeros((3, 50), int)
    for t in addends(held, wanted):
        assert t.shard == 0
        assert count(intersect(held[t.source], [(t.start, t.stop)])) == t.stop - t.start
        found[NAMES.index(t.destination), t.start : t.stop] += 1
    for row, name in enumerate(NAMES[:3]):
        expected = np.zeros(50, int)
        for ranges in held.values():
            expected[elements(intersect(ranges, wanted[name]))] += 1
        assert (found[row] == expected).all()
