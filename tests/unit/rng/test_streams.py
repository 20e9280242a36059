"""Draws belong to samples: they do not know which others are computed beside them, or what was drawn before."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.rng import Streams, key_of

SHAPE = (7, 5)


def draw(samples, *, seed=1, step=1, layer=1, site=0, keep=0.9, shape=SHAPE):
    streams = Streams(seed)
    streams.at(step, samples)
    return streams.mask(layer, site, (len(samples), *shape), keep)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=6, unique=True))
def test_a_sample_draws_the_same_in_any_company(samples):
    together = draw(samples)
    for row, sample in zip(together, samples, strict=True):
        assert torch.equal(row, draw([sample])[0])


def test_earlier_draws_do_not_matter():
    streams = Streams(1)
    streams.at(9, (4, 5, 6))
    streams.mask(3, 1, (3, 1000), 0.5)
    streams.at(1, (2, 3))
    assert torch.equal(streams.mask(1, 0, (2, *SHAPE), 0.9), draw((2, 3)))


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 2}, {"layer": 2}, {"site": 1}, {"samples": [4]}])
def test_every_part_of_the_key_matters(change):
    wanted = {"samples": [3], "shape": (256,), "keep": 0.5}
    assert not torch.equal(draw(**wanted), draw(**wanted | change))


@pytest.mark.parametrize("keep", [0.5, 0.9, 1 - 1e-6])
def test_rate(keep):
    mask = draw([1, 2], keep=keep, shape=(200_000,))
    deviation = (keep * (1 - keep) / mask.numel()) ** 0.5
    assert abs(mask.double().mean().item() - keep) < 5 * deviation + 2**-16


def test_neighbours_are_independent():
    mask = draw([1], keep=0.5, shape=(200_000,))[0].double() - 0.5
    assert abs((mask[1:] * mask[:-1]).mean().item()) < 5 * 0.25 / 200_000**0.5


def test_keys_differ_for_all_near_places():
    places = list(itertools.product(range(2), range(8), range(16), range(6), range(3)))
    assert len({key_of(*place) for place in places}) == len(places)


def test_rows_must_match_the_samples():
    streams = Streams(1)
    streams.at(1, (1, 2))
    with pytest.raises(ValueError, match="3 rows for 2 samples"):
        streams.mask(0, 0, (3, 4), 0.9)
