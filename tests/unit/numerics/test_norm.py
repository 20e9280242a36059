"""The norm has the same bits for every cut into shards, and the schedule hits its corners."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave import numerics
from elaswave.config import Optimizer
from elaswave.errors import NumericsError
from elaswave.numerics import CHUNK, LIMBS, clip_scale, learning_rate, norm_from_limbs, square_sum_limbs
from elaswave.zero.layout import cut

LAYERS = (1000, 256, 7, 2049, 300)
TOTAL = sum(LAYERS)


def gradient(scale=1.0):
    return torch.randn(TOTAL, generator=torch.Generator().manual_seed(1)) * scale


def limbs_of(flat, layout):
    totals = [0] * LIMBS
    for shard in range(len(layout.shards)):
        ranges = layout.ranges(shard)
        mine = torch.cat([flat[start:stop] for start, stop in ranges]) if ranges else flat[:0]
        totals = [a + b for a, b in zip(totals, square_sum_limbs(mine, ranges), strict=True)]
    return totals


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.sampled_from(["interleaved", "contiguous"]), st.sampled_from([1e-8, 1.0, 500.0]))
def test_every_cut_gives_the_same_integers(num_shards, kind, scale):
    flat = gradient(scale)
    whole = limbs_of(flat, cut(LAYERS, 1, "interleaved"))
    assert limbs_of(flat, cut(LAYERS, num_shards, kind)) == whole


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 500.0])
def test_norm_is_right(scale):
    flat = gradient(scale)
    norm = norm_from_limbs(limbs_of(flat, cut(LAYERS, 3, "interleaved")))
    assert norm == pytest.approx(flat.double().norm().item(), rel=1e-9)


def test_blocks_do_not_show(monkeypatch):
    flat, layout = gradient(), cut(LAYERS, 2, "interleaved")
    whole = limbs_of(flat, layout)
    monkeypatch.setattr(numerics, "BLOCK", CHUNK)
    assert limbs_of(flat, layout) == whole


def test_empty_shard_weighs_nothing():
    assert square_sum_limbs(torch.empty(0), ()) == (0,) * LIMBS


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e30, 2.0**18])
def test_norm_out_of_range_is_refused(bad):
    flat = gradient()
    flat[5] = bad
    with pytest.raises(NumericsError, match="not below 262144; lower"):
        square_sum_limbs(flat, ((0, TOTAL),))


def test_sum_out_of_range_is_refused_though_every_shard_is_within():
    half = square_sum_limbs(torch.tensor([0.8 * 2**18]), ((0, 1),))
    with pytest.raises(NumericsError, match="not below"):
        norm_from_limbs([2 * limb for limb in half])


def test_clip():
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 0.0) == 1.0


def test_learning_rate():
    config = Optimizer(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, config, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate(12, config, 20) == pytest.approx(0.55)


def test_learning_rate_without_warm_up_and_with_nothing_else():
    assert learning_rate(1, Optimizer(lr=1.0, min_lr=0.1, warmup_steps=0), 1) == pytest.approx(0.1)
    assert learning_rate(3, Optimizer(lr=1.0, min_lr=0.1, warmup_steps=3), 3) == 1.0
