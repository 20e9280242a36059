"""The path through the views is the same for all, however many of them each has seen."""

from hypothesis import given
from hypothesis import strategies as st

from elaswave.runtime.views import at_boundary, chain, interrupting
from elaswave.topology import Member, View


def view(epoch: int, ids: str, *, departed: str = "", term: int = 0, paused: bool = False) -> View:
    members = tuple(Member(rank=i, worker_id=w, node_id="n", host_id="h", pid=i) for i, w in enumerate(ids))
    return View(epoch=epoch, members=members, reason="", departed=frozenset(departed), term=term, paused=paused)


def test_a_death_interrupts_a_step() -> None:
    assert interrupting(view(1, "abc"), [view(2, "ab")], settled=True) == view(2, "ab")


def test_a_join_waits_for_the_boundary() -> None:
    now, joined = view(1, "ab"), view(2, "abc")
    assert interrupting(now, [joined], settled=True) is None
    assert at_boundary(now, [joined], agreed_epoch=1) is None
    assert at_boundary(now, [joined], agreed_epoch=2) == joined


def test_a_planned_leave_interrupts_a_recovery_but_not_a_step() -> None:
    left = view(2, "ab", departed="c")
    assert interrupting(view(1, "abc"), [left], settled=True) is None
    assert interrupting(view(1, "abc"), [left], settled=False) == left


def test_a_new_coordinator_restarts_a_recovery() -> None:
    again = view(2, "ab", term=1)
    assert interrupting(view(1, "ab"), [again], settled=True) is None
    assert interrupting(view(1, "ab"), [again], settled=False) == again


def test_a_paused_view_is_left_for_any_later_one() -> None:
    assert interrupting(view(1, "a", paused=True), [view(2, "ab")], settled=False) == view(2, "ab")


def test_joiner_and_survivors_meet() -> None:
    """c waits in view 2, d in view 3; the survivors enter one view after the other."""
    seen = [view(2, "abc"), view(3, "abcd")]
    assert at_boundary(view(1, "ab"), seen, agreed_epoch=3) == view(2, "abc")
    assert at_boundary(view(2, "abc"), seen, agreed_epoch=3) == view(3, "abcd")


def test_joiner_that_died_before_it_was_let_in_is_skipped() -> None:
    seen = [view(2, "abc"), view(3, "ab"), view(4, "abd")]
    assert interrupting(view(1, "ab"), seen, settled=True) is None
    assert at_boundary(view(1, "ab"), seen, agreed_epoch=4) == view(3, "ab")


@st.composite
def histories(draw: st.DrawFn) -> list[View]:
    """Views in which workers come and go, one change at a time."""
    alive, departed, fresh = ["a", "b"], "", iter("cdefghijklmnopqrstuvwxyz")
    views = [view(1, "".join(alive))]
    for epoch in range(2, draw(st.integers(3, 12))):
        change = draw(st.sampled_from(["join", "die", "leave"]))
        if change == "join" or len(alive) < 2:
            alive.append(next(fresh))
        else:
            gone = alive.pop(draw(st.integers(0, len(alive) - 1)))
            departed += gone if change == "leave" else ""
        views.append(view(epoch, "".join(alive), departed=departed))
    return views


@given(histories(), st.data())
def test_whoever_sees_more_only_goes_further_along_the_same_path(views: list[View], data: st.DataObject) -> None:
    shorter = data.draw(st.integers(1, len(views)))
    early = chain(views[0], views[:shorter])
    assert chain(early, views) == chain(views[0], views)
