"""Sharing micro-batches: each exactly once, and no worker slower than it must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.planner.dataflow import share


@given(st.integers(0, 200), st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_every_micro_batch_goes_to_exactly_one_worker(total: int, capacities: list[float]) -> None:
    shares = share(total, capacities)
    assert [i for ids in shares for i in ids] == list(range(total))


@given(st.integers(0, 200), st.integers(1, 20))
def test_equal_workers_differ_by_at_most_one(total: int, workers: int) -> None:
    sizes = [len(ids) for ids in share(total, [1.0] * workers)]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_slow_worker_gets_less() -> None:
    assert [len(ids) for ids in share(12, [1.0, 1.0, 0.5])] == [5, 5, 2]


def test_worker_without_capacity_gets_nothing() -> None:
    assert share(3, [0.0, 1.0]) == ((), (0, 1, 2))


def test_nobody_can_work() -> None:
    with pytest.raises(ValueError, match="capacity"):
        share(3, [0.0])
