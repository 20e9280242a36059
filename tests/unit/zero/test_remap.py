"""A change of layout puts every element where it belongs, and leaves the old shards as they were."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_group import FakeNetwork

from elaswave.errors import PeerLost
from elaswave.zero.layout import Layout, cut, route
from elaswave.zero.remap import Part, Remap

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
        remaps.append(Remap(network.groups[i], plan, sources, targets[i]).start())
    for remap in remaps:
        remap.finish()
    for name, target in zip(names, targets, strict=True):
        if name in owners:
            expected = part(state, new, owners.index(name))
            assert all(torch.equal(target.tensors[kind], expected.tensors[kind]) for kind in KINDS)
    assert sum(remap.bytes_sent for remap in remaps) == network.bytes == sum(r.bytes_received for r in remaps)
    return remaps


NOTHING = Part(ranges=(), tensors={kind: torch.zeros(0, dtype=dtype) for kind, dtype in KINDS.items()})


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
