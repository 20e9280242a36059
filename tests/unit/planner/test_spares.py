"""Wait, shrink, swap or stay: what is done first is chosen, at the extremes above all."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.planner.spares import Choice, Outlook, decide

LOST = Outlook(
    steps_left=1000,
    arrival_s=60.0,
    step_full_s=1.0,
    step_now_s=math.inf,
    step_shrunk_s=1.25,
    shrink_s=0.2,
    admit_s=0.5,
)
SLOW = dataclasses.replace(LOST, step_now_s=1.5)


def choice(outlook: Outlook, **changes: float) -> Choice:
    return decide(dataclasses.replace(outlook, **changes))[0]


@pytest.mark.parametrize(
    ("outlook", "changes", "expected"),
    [
        (LOST, {}, Choice.SHRINK),
        (LOST, {"arrival_s": math.inf}, Choice.SHRINK),
        (LOST, {"arrival_s": 0.0}, Choice.SWAP),
        (LOST, {"arrival_s": 0.3}, Choice.WAIT),
        (LOST, {"arrival_s": 10.0, "step_shrunk_s": 40.0}, Choice.WAIT),
        (LOST, {"step_shrunk_s": math.inf}, Choice.WAIT),
        (LOST, {"steps_left": 1}, Choice.SHRINK),
        (SLOW, {}, Choice.SHRINK),
        (SLOW, {"arrival_s": 0.0}, Choice.SWAP),
        (SLOW, {"step_now_s": 1.0001, "arrival_s": 0.0}, Choice.STAY),
        (SLOW, {"step_now_s": 1.25, "arrival_s": math.inf}, Choice.STAY),
        (SLOW, {"steps_left": 0}, Choice.STAY),
        (SLOW, {"steps_left": 1, "arrival_s": 0.0, "shrink_s": 0.3}, Choice.STAY),
        (SLOW, {"shrink_s": 1e6, "arrival_s": math.inf}, Choice.STAY),
    ],
)
def test_extremes(outlook, changes, expected):
    assert choice(outlook, **changes) is expected


def test_the_reason_names_all_prices():
    assert decide(LOST)[1] == "shrink: 1000 steps are done in 1013 s (stay never, swap never, wait 1060 s)"


def test_a_run_that_cannot_end_is_an_error():
    with pytest.raises(ValueError, match="no way ends"):
        decide(dataclasses.replace(LOST, arrival_s=math.inf, step_shrunk_s=math.inf))
    with pytest.raises(ValueError, match="not negative"):
        decide(dataclasses.replace(LOST, admit_s=-1.0))
    with pytest.raises(ValueError, match="not negative"):
        decide(dataclasses.replace(LOST, admit_s=math.nan))


times = st.floats(0, 1e4)


@given(st.integers(0, 5000), times, st.floats(1, 5), st.floats(1, 5), times, times)
def test_what_never_comes_is_not_waited_for(steps, arrival, now, shrunk, shrink, admit):
    outlook = Outlook(
        steps_left=steps,
        arrival_s=arrival,
        step_full_s=1.0,
        step_now_s=now,
        step_shrunk_s=shrunk,
        shrink_s=shrink,
        admit_s=admit,
    )
    assert decide(outlook) == decide(outlook)
    assert choice(outlook, arrival_s=math.inf) in (Choice.STAY, Choice.SHRINK)
    assert choice(outlook, arrival_s=0.0) is not Choice.WAIT
    assert choice(outlook, arrival_s=1 + arrival) is not Choice.SWAP
