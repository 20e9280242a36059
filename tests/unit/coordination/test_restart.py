"""When a dead worker is started again, after what delay, and when not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.coordination.restart import Action, Death, History, Limits, decide, describe_exit

LIMITS = Limits(max_restarts=100)


def death(exit_code: int = -9, lived_s: float = 60.0, *, joined: bool = True, finished: bool = False) -> Death:
    return Death(exit_code=exit_code, lived_s=lived_s, joined=joined, finished=finished)


def test_first_death_is_replaced_at_once():
    verdict = decide(death(), History(), LIMITS)
    assert (verdict.action, verdict.delay_s, verdict.history.restarts) == (Action.RESTART, 0.0, 1)


@pytest.mark.parametrize("end", [death(0), death(-9, finished=True), death(1, finished=True)])
def test_nobody_is_replaced_after_the_end(end: Death):
    assert decide(end, History(), LIMITS).action is Action.DONE


def test_refused_is_final_and_says_so():
    verdict = decide(death(65, joined=False), History(), LIMITS)
    assert verdict.action is Action.GIVE_UP
    assert "refused" in verdict.why


def test_fenced_is_replaced_by_a_fresh_worker_however_often():
    history = History()
    for _ in range(20):
        verdict = decide(death(66, joined=False), history, LIMITS)
        history = verdict.history
        assert verdict.action is Action.RESTART


def test_failed_starts_in_a_row_are_given_up():
    history = History()
    for _ in range(LIMITS.max_failed_starts - 1):
        verdict = decide(death(1, 3.0, joined=False), history, LIMITS)
        assert verdict.action is Action.RESTART
        history = verdict.history
    verdict = decide(death(1, 3.0, joined=False), history, LIMITS)
    assert verdict.action is Action.GIVE_UP
    assert "before it could join" in verdict.why


def test_one_good_life_forgives_failed_starts():
    history = History(failed_starts=LIMITS.max_failed_starts - 1, young_deaths=9)
    history = decide(death(1, 60.0, joined=True), history, LIMITS).history
    assert (history.failed_starts, history.young_deaths) == (0, 0)


def test_young_deaths_in_a_row_wait_longer_and_longer_up_to_the_cap():
    history, delays = History(), []
    for _ in range(12):
        verdict = decide(death(-11, 1.0), history, LIMITS)
        history = verdict.history
        delays.append(verdict.delay_s)
    assert delays[:4] == [0.0, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == LIMITS.max_backoff_s


def test_a_member_that_is_killed_often_is_replaced_at_once_every_time():
    history = History()
    for _ in range(12):
        verdict = decide(death(-9, 1.0), history, LIMITS)
        history = verdict.history
        assert verdict.delay_s == 0.0


@given(st.lists(st.tuples(st.sampled_from([1, 66, -9, -11]), st.floats(0, 1e6), st.booleans()), max_size=60))
def test_the_budget_holds(deaths: list[tuple[int, float, bool]]):
    limits = Limits(max_restarts=7)
    history, restarts = History(), 0
    for exit_code, lived_s, joined in deaths:
        verdict = decide(death(exit_code, lived_s, joined=joined), history, limits)
        if verdict.action is not Action.RESTART:
            break
        history, restarts = verdict.history, restarts + 1
    assert restarts <= limits.max_restarts


def test_exit_codes_in_words():
    assert [describe_exit(code) for code in (3, -9, -250)] == ["exit code 3", "SIGKILL", "signal 250"]
