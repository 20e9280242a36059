"""Digests do not depend on the cut, notice every flipped bit, and name the copy that is wrong."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.errors import CorruptState
from elaswave.snapshot.verify import BLOCK, Finding, combine, compare, digest

WHOLE = 3 * BLOCK + 1000
ORIGIN = 5 * BLOCK - 333


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    master = torch.randn(WHOLE, generator=generator)
    return {"master": master, "exp_avg": master * 3, "low": master.bfloat16(), "count": master.to(torch.int64)}


STATE = state()
DIGEST = digest([(ORIGIN, ORIGIN + WHOLE)], STATE)


@given(st.lists(st.integers(0, WHOLE), max_size=6), st.integers(1, 3), st.randoms())
@settings(max_examples=30, deadline=None)
def test_parts_of_any_cut_add_up_to_the_whole(points, ways, random):
    bounds = sorted({0, WHOLE, *points})
    ranges = [(a, b) for a, b in itertools.pairwise(bounds)]
    random.shuffle(ranges)
    parts = []
    for way in range(ways):
        mine = ranges[way::ways]
        flat = {name: torch.cat([t[a:b] for a, b in mine] or [t[:0]]) for name, t in STATE.items()}
        parts.append(digest([(ORIGIN + a, ORIGIN + b) for a, b in mine], flat))
    assert combine(parts) == DIGEST


@given(st.sampled_from(sorted(STATE)), st.integers(0, WHOLE - 1), st.integers(0, 63))
@settings(max_examples=60, deadline=None)
def test_every_flipped_bit_is_noticed(name, index, bit):
    tensor = STATE[name].clone()
    octets = tensor.view(torch.uint8)
    octets[index * tensor.itemsize + bit // 8 % tensor.itemsize] ^= 1 << bit % 8
    assert digest([(ORIGIN, ORIGIN + WHOLE)], {**STATE, name: tensor}) != DIGEST


def test_the_same_bits_elsewhere_give_another_digest():
    assert digest([(ORIGIN + 1, ORIGIN + WHOLE + 1)], STATE) != DIGEST
    assert digest([(ORIGIN + BLOCK, ORIGIN + WHOLE + BLOCK)], STATE) != DIGEST


def test_swapped_tensors_give_another_digest():
    swapped = {**STATE, "master": STATE["exp_avg"], "exp_avg": STATE["master"]}
    assert digest([(ORIGIN, ORIGIN + WHOLE)], swapped) != DIGEST


def test_the_sign_of_zero_counts():
    zero, negative = {"master": torch.zeros(1)}, {"master": -torch.zeros(1)}
    assert digest([(0, 1)], zero) != digest([(0, 1)], negative)


def test_the_value_is_fixed_for_all_time():
    assert digest([(7, 9), (BLOCK, BLOCK + 1)], {"master": torch.tensor([1.0, -2.0, 0.5])}) == 11305531692879446016


def test_nothing_has_digest_zero():
    assert digest([], {"master": torch.empty(0)}) == 0
    assert combine([]) == 0


def test_a_length_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="master has 3 elements, its ranges have 2"):
        digest([(0, 2)], {"master": torch.zeros(3)})


def finding(holder: str, value: int, shard: int = 0) -> Finding:
    return Finding(holder=holder, layout_epoch=1, shard=shard, version=7, digest=value)


def test_the_copy_that_differs_from_the_record_is_named():
    findings = [finding("a", 5), finding("b", 6), finding("c", 9, shard=1)]
    assert compare({(1, 0, 7): 5, (1, 1, 7): 9}, findings) == (finding("b", 6),)
    assert compare({(1, 0, 7): 6, (1, 1, 7): 9}, findings) == (finding("a", 5),)


def test_without_a_record_the_majority_is_right():
    assert compare({}, [finding("a", 5), finding("b", 5), finding("c", 6)]) == (finding("c", 6),)
    assert compare({}, [finding("a", 5)]) == ()


def test_without_record_or_majority_nobody_is_right():
    with pytest.raises(CorruptState, match=r"a has 0{15}5, b has 0{15}6"):
        compare({}, [finding("a", 5), finding("b", 6)])
