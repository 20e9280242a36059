"""What all members show in votes and commits is compared with what was committed; damage that comes back ends a job."""

from types import SimpleNamespace
from typing import Any

import pytest

from elaswave.config import Snapshot
from elaswave.errors import CorruptState, Damaged
from elaswave.runtime.sharded_state import DAMAGES_MAX, GENERATION_BITS, ShardedState
from elaswave.runtime.vote import Vote
from elaswave.snapshot.verify import combine

STEP, DIGESTS, UNITS = 3, (11, 12), (21, 22)


class Held:
    """A layout whose digests are told to it."""

    def __init__(self, number: int, *, whole: bool = False, copies: int = 0) -> None:
        self.number, self.whole, self.index = number, whole, 0
        self.digests: dict[int, tuple[int, ...]] = {}
        self.committed = self.settled = 0
        self._copies = copies
        self.optimizer = SimpleNamespace(commit=self._commit)
        self.pool = SimpleNamespace(settle=self._settle)

    def _commit(self) -> None:
        self.committed += 1

    def _settle(self) -> None:
        self.settled += 1

    def record(self, version: int, digests: Any) -> None:
        self.digests[version] = tuple(digests)

    def digest(self, shard: int, version: int) -> int:
        return 100 * shard + version

    def damaged_copies(self, version: int) -> list[int]:
        return list(range(self._copies))


class Moving:
    """A migration that is done, or is not."""

    def __init__(self, *, pending: bool) -> None:
        self.pending, self.digest, self.abandoned = pending, 555, False

    def abandon(self) -> None:
        self.abandoned = True


class Units:
    """Weights of which so many units are damaged."""

    def __init__(self, damaged: int) -> None:
        self._damaged = damaged

    def damaged(self, version: int, truth: Any, digest: Any) -> list[int]:
        return list(range(self._damaged))


def entered(state: ShardedState, number: int = 5, *, pending: bool = True, copies: int = 0) -> tuple[Any, Any]:
    held: Any = Held(number, whole=not pending, copies=copies)
    moving: Any = Moving(pending=pending)
    state.enter(held, moving, combine(DIGESTS), UNITS)
    if not pending:
        held.record(STEP, DIGESTS)
    return held, moving


def vote(digests: tuple[int, ...] = DIGESTS, weights: int = 0, copies: int = 0) -> Vote:
    found: Any = SimpleNamespace(digests=digests, damaged_weights=weights, damaged_copies=copies)
    return found


def test_a_vote_proves_a_layout_whole_and_the_next_one_compares():
    state = ShardedState(Snapshot())
    held, moving = entered(state)
    state.check_vote(STEP, vote())
    assert (held.whole, moving.pending, held.digests[STEP]) == (True, False, DIGESTS)
    with pytest.raises(Damaged, match=r"shards \[1\] of step 3"):
        state.check_vote(STEP, vote((11, 13)))


def test_what_was_not_sent_does_not_make_a_layout_whole():
    state = ShardedState(Snapshot())
    held, moving = entered(state)
    with pytest.raises(Damaged, match="new layout"):
        state.check_vote(STEP, vote((11, 13)))
    assert (held.whole, moving.pending) == (False, True)


@pytest.mark.parametrize(("told", "what"), [(vote(weights=2), "2 units"), (vote(copies=1), "1 copies")])
def test_damage_that_a_vote_tells_is_named(told: Vote, what: str):
    state = ShardedState(Snapshot())
    entered(state, pending=False)
    with pytest.raises(Damaged, match=what):
        state.check_vote(STEP, told)


def test_damage_of_one_step_is_forgiven_a_few_times_and_that_of_another_starts_anew():
    state = ShardedState(Snapshot())
    entered(state, pending=False)
    rows = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    for step in [STEP] * DAMAGES_MAX + [STEP + 1] * DAMAGES_MAX:
        with pytest.raises(Damaged, match=r"shards \[1\]"):
            state.check_commit(step, rows)
    with pytest.raises(CorruptState) as caught:
        state.check_commit(STEP + 1, rows)
    assert not isinstance(caught.value, Damaged)


def test_until_a_commit_the_last_whole_layout_is_kept():
    state = ShardedState(Snapshot())
    first, _ = entered(state, 5, pending=False)
    second, _ = entered(state, 6)
    third, moving = entered(state, 7)
    assert state.holdings() == [third, first]
    state.release()
    assert moving.abandoned
    assert (first.settled, second.settled, third.settled) == (1, 0, 1)
    assert state.commit(STEP + 1, [[-1, 0, 0, 0, 0, 1, 2], [4, 0, 0, 0, 0, 3, 4]]) == combine(((1 << 64) - 1, 4))
    assert state.holdings() == [third]
    assert third.committed == 1
    assert state.truth == (combine((1, 3)), combine((2, 4)))


def test_numbers_of_layouts_grow():
    state = ShardedState(Snapshot())
    assert not state.entered
    assert state.next_number(2) == 2 << GENERATION_BITS
    entered(state, 2 << GENERATION_BITS)
    assert state.next_number(2) == (2 << GENERATION_BITS) + 1
    assert state.next_number(3) == 3 << GENERATION_BITS


@pytest.mark.parametrize(("pending", "verify", "digest"), [(True, True, 555), (False, True, STEP), (False, False, 0)])
def test_a_shard_on_its_way_has_the_digest_with_which_it_arrived(pending: bool, verify: bool, digest: int):
    state = ShardedState(Snapshot(verify=verify, verify_weights=verify))
    entered(state, pending=pending)
    assert state.digest(STEP) == digest


@pytest.mark.parametrize(
    ("scrub", "pending", "expected"), [(0, False, (2, 0)), (3, False, (2, 4)), (2, False, (2, 0)), (3, True, (2, 0))]
)
def test_copies_are_looked_at_every_so_many_steps(scrub: int, pending: bool, expected: tuple[int, int]):
    state = ShardedState(Snapshot(scrub_steps=scrub))
    entered(state, pending=pending, copies=4)
    weights: Any = Units(2)
    assert state.damages(STEP, weights) == expected
