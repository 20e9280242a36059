"""A change of layout puts every element where it belongs, and leaves the old shards as they were."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_group import FakeNetwork

from elaswave.errors import PeerLost
from elaswave.zero.layout import Layout, Ranges, addends, count, cut, route, supply
from elaswave.zero.remap import NOTHING, Part, Remap

KINDS = {"master": torch.float32, "steps": torch.int64, "low": torch.bfloat16, "flag": torch.uint8}


def whole(size: int) -> dict[str, torch.Tensor]:
    return {kind: torch.arange(size).mul(7 + i).to(dtype) for i, (kind, dtype) in enumerate(KINDS.items())}


def part(state: dict[str, torch.Tensor], layout: Layout, shard: int) -> Part:
    ranges = layout.ranges(shard)
    return Part(ranges=ranges, tensors={k: torch.cat([t[a:b] for a, b in ranges] or [t[:0]]) for k, t in state.items()})


def empty(layout: Layout, shard: int) -> Part:
    size = layout.size(shard)
    return Part(ranges=layout.ranges(shard), tensors={k: torch.zeros(size, dtype=dtype) for k, dtype in KINDS.items()})


def run(old: Layout, new: Layout, names: list[str], holders: list[list[str]], owners: list[str]) -> list[Remap]:
    state, network = whole(old.num_elements), FakeNetwork(names)
    plan = route(old, new, holders, owners)
    targets = [empty(new, owners.index(name)) if name in owners else NOTHING for name in names]
    remaps = []
    for i, name in enumerate(names):
        sources = {shard: part(state, old, shard) for shard in range(old.num_shards) if name in holders[shard]}
        remaps.append(Remap(network.groups[i], plan, sources, targets[i], kinds=KINDS).start())
    for remap in remaps:
        remap.finish()
    for name, target in zip(names, targets, strict=True):
        if name in owners:
            expected = part(state, new, owners.index(name))
            assert all(torch.equal(target.tensors[kind], expected.tensors[kind]) for kind in KINDS)
    assert sum(remap.bytes_sent for remap in remaps) == network.bytes == sum(r.bytes_received for r in remaps)
    return remaps


@given(
    st.lists(st.integers(0, 900), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["interleaved", "contiguous"]),
    st.sampled_from(["interleaved", "contiguous"]),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_every_new_shard_is_filled(sizes, before, after, kind, other, data):
    old, new = cut(sizes, before, kind, 16), cut(sizes, after, other, 16)
    names = [f"w{i}" for i in range(6)]
    holders = [data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)) for _ in range(before)]
    owners = data.draw(st.permutations(names))[:after]
    remaps = run(old, new, names, holders, owners)
    moved = sum(r.bytes_received + r.bytes_kept for r in remaps)
    assert moved == sum(sizes) * sum(dtype.itemsize for dtype in KINDS.values())


def test_one_message_per_pair_of_workers():
    sizes, names = [640] * 10, ["w0", "w1", "w2"]
    old, new = cut(sizes, 2, "interleaved", 16), cut(sizes, 3, "interleaved", 16)
    network = FakeNetwork(names)
    sent: list[tuple[int, int]] = []
    for group in network.groups:
        original = group.isend
        group.isend = lambda tensor, dst, tag=0, original=original, rank=group.rank: (
            sent.append((rank, dst)),
            original(tensor, dst, tag),
        )[1]
    plan = route(old, new, [["w0"], ["w1"]], names)
    for i, group in enumerate(network.groups):
        sources = {i: part(whole(6400), old, i)} if i < 2 else {}
        Remap(group, plan, sources, empty(new, i)).start()
    assert len(sent) == len(set(sent))


def test_a_loss_in_the_middle_leaves_the_old_shards_and_a_second_try_succeeds():
    sizes, names = [4096, 512], ["w0", "w1", "w2"]
    old, new = cut(sizes, 2, chunk=16), cut(sizes, 3, chunk=16)
    state = whole(sum(sizes))
    sources = [{0: part(state, old, 0)}, {1: part(state, old, 1), 0: part(state, old, 0)}, {}]
    network = FakeNetwork(names)
    network.lost = {1}
    plan = route(old, new, [["w0", "w1"], ["w1"]], names)
    remaps = [Remap(g, plan, sources[i], empty(new, i)).start() for i, g in enumerate(network.groups)]
    with pytest.raises(PeerLost):
        remaps[2].finish()
    for held in sources:
        for shard, found in held.items():
            assert all(torch.equal(found.tensors[k], part(state, old, shard).tensors[k]) for k in KINDS)
    run(old, new, names, [["w0", "w1"], ["w1"]], names)


def test_tensors_that_do_not_fit_their_ranges_are_refused():
    with pytest.raises(ValueError, match="master has 3 elements, its ranges have 4"):
        Part(ranges=((0, 4),), tensors={"master": torch.zeros(3)})


def flat(size: int) -> Part:
    """A shard of everything, with weights that bfloat16 must round."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    return Part(ranges=((0, size),), tensors={"master": values, "other": torch.zeros(size)})


def piece(whole: Part, ranges: Ranges) -> Part:
    return Part(
        ranges=ranges,
        tensors={k: torch.cat([t[a:b] for a, b in ranges] or [t[:0]]) for k, t in whole.tensors.items()},
    )


def room(ranges: Ranges, name: str, dtype: torch.dtype) -> Part:
    return Part(ranges=ranges, tensors={name: torch.zeros(count(ranges), dtype=dtype)})


def carry_out(remaps: list[Remap]) -> None:
    for remap in remaps:
        remap.start()
    for remap in remaps:
        remap.finish()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_once_for_all_who_want_them(dtype):
    names, state = ["w0", "w1", "w2", "w3"], flat(3000)
    old = cut([1000, 0, 2000], 3, "interleaved", 16, [((0,), (0, 1)), ((1, 2), (1, 2))])
    holders = [["w0"], ["w1", "w0"], ["w2"]]
    wanted = {"w0": ((0, 1000), (1500, 2500)), "w3": ((0, 3000),), "w2": ((900, 2400),)}
    plan = supply(old, holders, wanted)
    targets = {name: room(wanted[name], "master", dtype) for name in wanted}
    network = FakeNetwork(names)
    remaps = []
    for i, name in enumerate(names):
        sources = {s: piece(state, old.ranges(s)) for s in range(3) if name in holders[s]}
        target = targets.get(name, NOTHING)
        remaps.append(Remap(network.groups[i], plan, sources, target, kinds={"master": torch.bfloat16}))
    carry_out(remaps)
    rounded = state.tensors["master"].bfloat16().to(dtype)
    for name, target in targets.items():
        expected = torch.cat([rounded[a:b] for a, b in wanted[name]])
        assert torch.equal(target.tensors["master"], expected)
    moved = sum(t.stop - t.start for t in plan if t.source != t.destination)
    assert network.bytes == 2 * moved == sum(remap.bytes_sent for remap in remaps)


@given(st.sampled_from([torch.int64, torch.float32]), st.data())
@settings(max_examples=60, deadline=None)
def test_partial_sums_of_several_holders_are_added_to_what_is_there(dtype, data):
    size, names = 60, ["w0", "w1", "w2"]
    points = [sorted(data.draw(st.sets(st.integers(0, size), max_size=8))) for _ in range(6)]
    some = [tuple(zip(p[0::2], p[1::2], strict=False)) for p in points]
    held, wanted = dict(zip(names, some[:3], strict=True)), dict(zip(names, some[3:], strict=True))
    numbers = torch.Generator().manual_seed(1)
    values = [torch.randint(-100, 100, (size,), generator=numbers).to(dtype) for _ in names]
    plan = addends(held, wanted)
    network = FakeNetwork(names)
    targets = [Part(ranges=wanted[n], tensors={"sum": torch.ones(count(wanted[n]), dtype=dtype)}) for n in names]
    remaps = []
    for i, name in enumerate(names):
        own = piece(Part(ranges=((0, size),), tensors={"sum": values[i]}), held[name])
        remaps.append(Remap(network.groups[i], plan, {0: own}, targets[i], add=True))
    carry_out(remaps)
    total = torch.ones(size, dtype=dtype)
    for value, name in zip(values, names, strict=True):
        for start, stop in held[name]:
            total[start:stop] += value[start:stop]
    for name, target in zip(names, targets, strict=True):
        expected = piece(Part(ranges=((0, size),), tensors={"sum": total}), wanted[name])
        assert torch.equal(target.tensors["sum"], expected.tensors["sum"])


def test_two_plans_travel_at_once_and_say_when_they_are_ready():
    names, state = ["w0", "w1"], flat(512)
    layout = cut([512], 1)
    plan = supply(layout, [["w0"]], {"w1": ((0, 512),)})
    network = FakeNetwork(names)
    weights = room(((0, 512),), "master", torch.bfloat16)
    rest = Part(ranges=((0, 512),), tensors={"other": torch.ones(512)})
    late = Remap(network.groups[0], plan, {0: state}, kinds={"other": torch.float32}, tag=7).start()
    early = Remap(network.groups[0], plan, {0: state}, kinds={"master": torch.bfloat16}, tag=8).start()
    first = Remap(network.groups[1], plan, {}, weights, tag=8).start()
    expected = state.tensors["master"].bfloat16()
    state.tensors["master"].zero_()
    assert not first.ready
    assert not early.ready
    network.progress()
    assert first.ready
    assert early.ready
    assert not late.ready
    assert not weights.tensors["master"].any()
    first.finish()
    assert torch.equal(weights.tensors["master"], expected)
    second = Remap(network.groups[1], plan, {}, rest, tag=7).start()
    for remap in (second, late, early):
        remap.finish()
        assert remap.ready
    assert not rest.tensors["other"].any()


def test_what_is_copied_can_be_left_to_another_thread():
    old, new = cut([640] * 4, 2, "contiguous", 16), cut([640] * 4, 3, "interleaved", 16)
    names, state = ["w0", "w1", "w2"], whole(2560)
    network, plan = FakeNetwork(names), route(old, new, [["w0"], ["w1"]], names)
    targets = [empty(new, i) for i in range(3)]
    remaps = [
        Remap(group, plan, {i: part(state, old, i)} if i < 2 else {}, targets[i], kinds=KINDS)
        for i, group in enumerate(network.groups)
    ]
    with ThreadPoolExecutor(1) as thread:
        for remap in remaps:
            remap.ask()
            thread.submit(remap.pack).result()
            kept = thread.submit(remap.keep)
            remap.send()
            kept.result()
        assert not all(remap.ready for remap in remaps)
        for remap in remaps:
            remap.wait()
            assert remap.ready
            thread.submit(remap.take).result()
    for i, target in enumerate(targets):
        expected = part(state, new, i)
        assert all(torch.equal(target.tensors[kind], expected.tensors[kind]) for kind in KINDS)
