"""What rivals' behaviours are emulated as: a ring's order of sums, generators per rank, and averages over the rest."""

import pytest
import torch

from elaswave.bench.deviation import Behaviour, Emulation, RankStreams, deviation, mean_difference, ring_sum
from elaswave.config import Config, from_mapping


@pytest.fixture(scope="module")
def config() -> Config:
    return from_mapping(
        {
            "model": {"layers": 1, "width": 16, "heads": 2, "sequence_length": 8},
            "training": {"steps": 8, "train_batch_size": 8, "micro_batch_size": 2},
            "optimizer": {"warmup_steps": 1},
        }
    )


def test_a_ring_adds_every_part_once_in_an_order_that_depends_on_the_chunk():
    parts = [torch.tensor([1e8, 1e8, 1e8]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-1e8, -1e8, -1e8])]
    assert ring_sum(parts).tolist() == [0.0, 1.0, 0.0]
    whole = [torch.full((5,), float(i)) for i in range(4)]
    assert ring_sum(whole).tolist() == [6.0] * 5
    assert torch.equal(ring_sum(whole[:1]), whole[0])


def test_ranks_that_stay_go_on_where_they_were_and_others_begin_anew():
    streams, untouched = RankStreams(3), RankStreams(3)
    streams.resize(2), untouched.resize(2)
    first = {}
    for rank in (0, 1):
        streams.rank = rank
        first[rank] = streams.mask(0, 0, (64,), 0.5)
    streams.resize(1), streams.resize(2)
    streams.rank = 1
    assert torch.equal(streams.mask(0, 0, (64,), 0.5), first[1])
    streams.rank = 0
    assert not torch.equal(streams.mask(0, 0, (64,), 0.5), first[0])


def test_a_whole_batch_is_the_same_however_it_is_shared(config: Config):
    losses = [Emulation(config, Behaviour.DROPPED_BATCH, full).run([full] * 3) for full in (1, 4)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_every_behaviour_deviates_after_a_loss_and_none_without(config: Config):
    wounded = dict(enumerate([4, 3, 2, 3, 1, 3, 4, 3], start=1))
    found = {behaviour: deviation(behaviour, config, wounded, 4) for behaviour in Behaviour}
    assert 0.0 < found[Behaviour.FLOAT_RING] < 1e-4 < found[Behaviour.RANK_RNG]
    assert found[Behaviour.DROPPED_BATCH] > 1e-4
    assert deviation(Behaviour.DROPPED_BATCH, config, dict.fromkeys(wounded, 4), 4) == 0.0


def test_difference_of_nothing():
    assert mean_difference([], []) == 0.0
    assert mean_difference([1.0, 2.0], [2.0, 0.0]) == 1.5
