"""The vote adds up to the same bits however the micro-batches and their layers were shared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elaswave.errors import CorruptState
from elaswave.runtime.exchange import signed
from elaswave.runtime.vote import Vote, ballot, count

WORKERS = 4
LAYERS = 3
SHARDS = 5


@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=30),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=SHARDS, max_size=SHARDS),
    st.data(),
)
def test_any_sharing_gives_the_same_losses(losses: list[float], digests: list[int], data: st.DataObject) -> None:
    worker = st.integers(0, WORKERS - 1)
    owners = data.draw(st.lists(worker, min_size=len(losses), max_size=len(losses)))
    owners_of_shards = data.draw(st.lists(worker, min_size=SHARDS, max_size=SHARDS))
    homes = data.draw(st.lists(worker, min_size=len(losses) * LAYERS, max_size=len(losses) * LAYERS))
    total = torch.zeros(1, dtype=torch.int64)
    for me in range(WORKERS):
        own = {i: loss for i, loss in enumerate(losses) if owners[i] == me}
        parts = {i: [(k, k + 1) for k in range(LAYERS) if homes[i * LAYERS + k] == me] for i in range(len(losses))}
        told = {shard: digests[shard] for shard in range(SHARDS) if owners_of_shards[shard] == me}
        if me % 2:
            told = {shard: signed(digest) for shard, digest in told.items()}
        total = total + ballot(own, parts, (1, 2, 3), told, len(losses), LAYERS, SHARDS)
    assert count(total, len(losses), LAYERS) == Vote(losses=tuple(losses), limbs=(4, 8, 12), digests=tuple(digests))


def one(losses: dict[int, float], contributions: dict[int, list[tuple[int, int]]]) -> torch.Tensor:
    return ballot(losses, contributions, (0, 0, 0), {}, 2, LAYERS, 1)


WHOLE = {0: [(0, 3)], 1: [(0, 1), (1, 3)]}


def test_contributions_may_be_in_pieces_and_in_other_sums_than_the_loss() -> None:
    parts = [one({0: 1.0}, {0: [(0, 3)], 1: [(1, 2)]}), one({1: 2.0}, {1: [(2, 3), (0, 1)]}), one({}, {})]
    assert count(sum(parts, torch.zeros(1, dtype=torch.int64)), 2, LAYERS).loss == 3.0


def test_lost_and_doubled_losses_are_named() -> None:
    with pytest.raises(CorruptState, match=r"losses .*\{1: 0\}$"):
        count(one({0: 1.0}, WHOLE), 2, LAYERS)
    with pytest.raises(CorruptState, match=r"losses .*\{0: 2\}$"):
        count(one({0: 1.0}, {}) + one({0: 1.0, 1: 2.0}, WHOLE), 2, LAYERS)


@pytest.mark.parametrize(
    ("contributions", "micro_batches", "layers"),
    [
        ({0: [(0, 3)]}, r"\{1: 0\}", r"\{0: 1, 1: 1, 2: 1\}"),
        ({0: [(0, 3)], 1: [(0, 2)]}, r"\{1: 2\}", r"\{2: 1\}"),
        ({0: [(0, 3), (1, 2)], 1: [(0, 3)]}, r"\{0: 4\}", r"\{1: 3\}"),
    ],
)
def test_lost_and_doubled_gradients_are_named_by_micro_batch_and_layer(
    contributions: dict[int, list[tuple[int, int]]], micro_batches: str, layers: str
) -> None:
    with pytest.raises(CorruptState, match=rf"^micro-batches .*{micro_batches}; layers .*{layers}$"):
        count(one({0: 1.0, 1: 2.0}, contributions), 2, LAYERS)


def test_gradients_of_one_layer_in_place_of_another_are_found() -> None:
    with pytest.raises(CorruptState, match=r"^layers .*\{0: 1, 1: 3\}$"):
        count(one({0: 1.0, 1: 2.0}, {0: [(0, 3)], 1: [(1, 2), (1, 3)]}), 2, LAYERS)
    with pytest.raises(CorruptState, match=r"^micro-batches .*\{0: 4, 1: 2\}$"):
        count(one({0: 1.0, 1: 2.0}, {0: [(0, 3), (0, 1)], 1: [(1, 3)]}), 2, LAYERS)


def test_a_shard_of_which_nobody_tells_has_no_digest() -> None:
    told = ballot({0: 1.0}, {0: [(0, 3)]}, (0, 0, 0), {1: 7, 2: -1}, 1, LAYERS, 3)
    assert count(told, 1, LAYERS).digests == (0, 7, (1 << 64) - 1)


def test_a_gradient_is_weighed_over_all_shards() -> None:
    whole = ballot({0: 0.5}, {0: [(0, 3)]}, (3, 1 << 50, 5), {0: 1}, 1, LAYERS, 2)
    rest = ballot({}, {}, (2, 1 << 50, 1), {1: 2}, 1, LAYERS, 2)
    assert count(whole + rest, 1, LAYERS) == Vote(losses=(0.5,), limbs=(5, 1 << 51, 6), digests=(1, 2))
