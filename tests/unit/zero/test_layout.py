"""Cuts cover every element once and are balanced; their differences move only what has to move."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.zero.layout import Layout, Transfer, count, cut, diff, intersect, route

KINDS = ("interleaved", "contiguous")
layers = st.lists(st.integers(0, 3000), min_size=1, max_size=8)
chunks = st.sampled_from([1, 7, 64, 256])
shard_counts = st.integers(1, 9)


def workers(number: int) -> list[str]:
    return [f"w{i}" for i in range(number)]


@given(layers, shard_counts, st.sampled_from(KINDS), chunks)
def test_every_element_belongs_to_exactly_one_shard(sizes, number, kind, chunk):
    layout = cut(sizes, number, kind, chunk)
    ranges = sorted(r for shard in range(number) for r in layout.ranges(shard))
    assert all(start < stop for start, stop in ranges)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][: len(ranges)]
    assert (ranges[-1][1] if ranges else 0) == sum(sizes) == layout.num_elements


@given(layers, shard_counts, st.sampled_from(KINDS), chunks)
def test_boundaries_are_multiples_of_the_chunk_inside_one_layer(sizes, number, kind, chunk):
    layout = cut(sizes, number, kind, chunk)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    for shard in range(number):
        assert list(layout.ranges(shard)) == sorted(layout.ranges(shard))
        for start, stop in layout.ranges(shard):
            layer = next(i for i, end in enumerate(ends) if start < end)
            begin = ends[layer] - sizes[layer]
            assert (start - begin) % chunk == 0
            assert stop == ends[layer] or (stop < ends[layer] and (stop - begin) % chunk == 0)


@given(layers, shard_counts, st.sampled_from(KINDS), chunks)
def test_shards_are_balanced_however_many_layers(sizes, number, kind, chunk):
    layout = cut(sizes, number, kind, chunk)
    mean = sum(sizes) / number
    assert all(abs(layout.size(shard) - mean) < 2 * chunk for shard in range(number))


@given(layers, shard_counts, chunks)
def test_interleaved_layers_are_balanced_one_by_one(sizes, number, chunk):
    layout = cut(sizes, number, "interleaved", chunk)
    start = 0
    for size in sizes:
        parts = [count(intersect(layout.ranges(shard), [(start, start + size)])) for shard in range(number)]
        assert all(abs(part - size / number) < 2 * chunk for part in parts)
        start += size


def test_surplus_chunks_do_not_pile_up_on_one_shard():
    layout = cut([5 * 256] * 40, 4, "interleaved", 256)
    assert {layout.size(shard) for shard in range(4)} == {40 * 5 * 256 // 4}


def test_short_tails_do_not_pile_up_on_the_last_shard():
    layout = cut([4 * 256 + 10] * 100, 4, "interleaved", 256)
    sizes = [layout.size(shard) for shard in range(4)]
    assert max(sizes) - min(sizes) <= 256


@given(layers, shard_counts, shard_counts, st.sampled_from(KINDS), st.sampled_from(KINDS), chunks, st.data())
def test_route_covers_every_new_shard_from_holders_once(sizes, before, after, kind, other, chunk, data):
    old, new = cut(sizes, before, kind, chunk), cut(sizes, after, other, chunk)
    names = workers(10)
    holders = [data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)) for _ in range(before)]
    owners = data.draw(st.permutations(names))[:after]
    plan = route(old, new, holders, owners)
    assert plan == route(old, new, holders, owners)
    assert [t.start for t in plan] == [0, *(t.stop for t in plan)][: len(plan)]
    assert (plan[-1].stop if plan else 0) == sum(sizes)
    for t in plan:
        assert t.source in holders[t.shard]
        assert count(intersect(old.ranges(t.shard), [(t.start, t.stop)])) == t.stop - t.start
        assert count(intersect(new.ranges(owners.index(t.destination)), [(t.start, t.stop)])) == t.stop - t.start
        assert (t.source == t.destination) == (t.destination in holders[t.shard])
    assert all(_distinct(a, b) for a, b in itertools.pairwise(plan))


def _distinct(a: Transfer, b: Transfer) -> bool:
    return (a.source, a.destination, a.shard) != (b.source, b.destination, b.shard)


def test_the_same_cut_moves_nothing():
    layout = cut([1000, 2000], 3, "interleaved", 64)
    assert diff(layout, layout, [[w] for w in workers(3)], workers(3)) == ()


def test_a_replacement_receives_its_shard_and_nothing_else_moves():
    layout = cut([1000, 2000], 3, "interleaved", 64)
    moved = diff(layout, layout, [["w0"], ["w0"], ["w2"]], ["w0", "new", "w2"])
    assert {(t.source, t.destination) for t in moved} == {("w0", "new")}
    assert sum(t.stop - t.start for t in moved) == layout.size(1)


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_a_moved_interleaved_layer_is_disjoint_copies(ways):
    layer = cut([ways * 512], ways, "interleaved", 256)
    moved = diff(layer, layer, [[f"a{i}"] for i in range(ways)], [f"b{i}" for i in range(ways)])
    assert [(t.source, t.destination, t.stop - t.start) for t in moved] == [
        (f"a{i}", f"b{i}", 512) for i in range(ways)
    ]


def test_neighbours_that_hold_copies_take_over_a_lost_shard_without_any_transfer():
    sizes, names = [4096 * 15] * 6, workers(6)
    old, new = cut(sizes, 6), cut(sizes, 5)
    for lost in range(6):
        alive = [w for w in names if w != names[lost]]
        holders = [[names[j % 6] for j in (i, i + 1, i - 1) if j % 6 != lost] for i in range(6)]
        assert diff(old, new, holders, alive) == ()


def test_several_holders_share_the_sending():
    old, new = cut([1024 * 12], 1), cut([1024 * 12], 4)
    moved = diff(old, new, [["a", "b", "c"]], ["n0", "n1", "n2", "n3"])
    sent = {s: sum(t.stop - t.start for t in moved if t.source == s) for s in "abc"}
    assert sorted(sent.values()) == [3072, 3072, 6144]


def test_a_shard_without_holder_is_an_error():
    layout = cut([1024], 2)
    with pytest.raises(ValueError, match="shard 1"):
        route(layout, layout, [["a"], []], ["a", "b"])


def test_different_layers_are_an_error():
    with pytest.raises(ValueError, match="different layers"):
        route(cut([10], 1), cut([11], 1), [["a"]], ["a"])


@pytest.mark.parametrize(("sizes", "number", "chunk"), [([1], 0, 1), ([-1], 1, 1), ([1], 1, 0)])
def test_impossible_cuts_are_errors(sizes, number, chunk):
    with pytest.raises(ValueError, match="cannot cut"):
        cut(sizes, number, "interleaved", chunk)


def test_contiguous_shards_are_one_stretch():
    layout: Layout = cut([1000] * 10, 4, "contiguous", 10)
    for shard in range(4):
        ranges = layout.ranges(shard)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=8),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=8),
)
def test_intersection_is_that_of_the_element_sets(a, b):
    first, second = _disjoint(a), _disjoint(b)
    common = intersect(first, second)
    members = sorted(i for start, stop in common for i in range(start, stop))
    assert members == sorted(_elements(first) & _elements(second))


def _disjoint(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges, at = [], 0
    for gap, size in steps:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    return ranges


def _elements(ranges: list[tuple[int, int]]) -> set[int]:
    return {i for start, stop in ranges for i in range(start, stop)}
