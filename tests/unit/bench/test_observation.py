"""What a kill has cost, from commits alone."""

import pytest

from elaswave.bench.rivals.observation import Commit, back, healthy_step_s, new_steps, next_commits


def commit(slot: int, step: int, t: float, *, pid: int = 0, took: float = 0.1) -> Commit:
    return Commit(slot=slot, pid=pid or 100 + slot, step=step, begun=t - took, t=t)


HEALTHY = [commit(slot, step, step + 0.01 * slot) for slot in range(3) for step in range(1, 6)]
KILLED = 5.5


def test_healthy_step_is_the_time_between_commits_before_the_kill() -> None:
    later = [commit(0, 6, 100.0)]
    assert healthy_step_s([*later, *HEALTHY], KILLED, [0, 1]) == pytest.approx(1.0)


def test_an_attempt_that_began_before_the_kill_does_not_count() -> None:
    commits = [*HEALTHY, commit(0, 6, 5.55), commit(1, 6, 5.55)]
    assert next_commits(commits, KILLED, [0, 1]) is None
    commits += [commit(0, 7, 9.0), commit(1, 7, 8.0), commit(0, 8, 10.0)]
    found = next_commits(commits, KILLED, [0, 1])
    assert found is not None
    assert sorted((one.slot, one.t) for one in found) == [(0, 9.0), (1, 8.0)]


def test_steps_computed_again_do_not_count_after_a_restart() -> None:
    survivors_finish = [commit(0, 6, 5.55)]
    again = [commit(slot, step, 10.0 + step, pid=200 + slot) for slot in range(3) for step in (5, 6)]
    assert new_steps([*HEALTHY, *survivors_finish, *again], KILLED, [0, 1, 2]) is None
    new = [commit(slot, 7, 20.0 + slot, pid=200 + slot) for slot in range(3)]
    found = new_steps([*HEALTHY, *survivors_finish, *again, *new], KILLED, [0, 1, 2])
    assert found is not None
    assert max(one.t for one in found) == 22.0


def test_the_replacement_is_another_process_in_the_same_slot() -> None:
    commits = [*HEALTHY, commit(1, 6, 6.0), commit(2, 6, 6.0, pid=900), commit(2, 7, 7.0, pid=900)]
    found = back(commits, KILLED, 2, 102)
    assert found is not None
    assert (found.pid, found.t) == (900, 6.0)
    assert back(HEALTHY, KILLED, 2, 102) is None
