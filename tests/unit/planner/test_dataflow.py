"""Sharing micro-batches: each exactly once, and no worker slower than it must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.planner.dataflow import share, top_up


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


@given(st.integers(0, 40), st.integers(1, 6), st.data())
def test_what_is_left_open_is_shared_once(total: int, members: int, data: st.DataObject) -> None:
    owner = data.draw(st.lists(st.integers(-1, members - 1), min_size=total, max_size=total))
    done = [[i for i in range(total) if owner[i] == member] for member in range(members)]
    shares = top_up(total, done)
    assert sorted(i for ids in shares for i in ids) == [i for i in range(total) if owner[i] == -1]
    load = [len(a) + len(b) for a, b in zip(done, shares, strict=True)]
    assert all(load[i] <= min(load) + 1 for i in range(members) if shares[i])


def test_a_contribution_held_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        top_up(3, [[0], [0]])
