"""The vote adds up to the same bits however the micro-batches were shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.errors import CorruptState
from elaswave.runtime.vote import ballot, count


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), st.data())
def test_any_sharing_gives_the_same_losses(losses: list[float], data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(losses), max_size=len(losses)))
    parts = [{i: x for i, x in enumerate(losses) if owners[i] == worker} for worker in range(4)]
    vote = count(sum(ballot(part, len(losses), (1, 2, 3)) for part in parts), len(losses))
    assert vote.losses == tuple(losses)
    assert vote.limbs == (4, 8, 12)


def test_lost_and_doubled_micro_batches_are_named() -> None:
    with pytest.raises(CorruptState, match=r"\{1: 0\}"):
        count(ballot({0: 1.0}, 2, (0, 0, 0)), 2)
    with pytest.raises(CorruptState, match=r"\{0: 2\}"):
        count(ballot({0: 1.0}, 2, (0, 0, 0)) + ballot({0: 1.0, 1: 2.0}, 2, (0, 0, 0)), 2)
