"""Wait, shrink, swap or stay: what to do about a lost or slow member while a spare is on its way.

Each way is priced by when the job would be done on it; the earliest wins.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Choice(StrEnum):
    """What the job does now; in order of how little it disturbs."""

    STAY = "stay"  # go on in the present plan, and leave it at that
    SWAP = "swap"  # the spare is here: it takes the place at once
    SHRINK = "shrink"  # go on without the member, take in the spare when it comes if that pays
    WAIT = "wait"  # stand still until the spare is here


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a decision depends on; times in seconds, infinite for what cannot be.

    Attributes:
        steps_left: of the run.
        arrival_s: until the spare is here; 0 when it is, infinite when none is coming.
        step_full_s: a step with all members.
        step_now_s: a step in the present plan, with the slow member in it; infinite when a member is lost.
        step_shrunk_s: a step in the plan without the member; infinite when too few would be left.
        shrink_s: to change to that plan.
        admit_s: to take in the spare, from either plan.
    """

    steps_left: int
    arrival_s: float
    step_full_s: float
    step_now_s: float
    step_shrunk_s: float
    shrink_s: float
    admit_s: float


def decide(outlook: Outlook) -> tuple[Choice, str]:
    """The way on which the run is done first, the less disturbing one on ties, and a one-line reason.

    Raises:
        ValueError: a time is negative or not a number, or the run cannot be finished in any way.
    """
    times = [getattr(outlook, name) for name in outlook.__slots__]
    if any(math.isnan(value) or value < 0 for value in times):
        raise ValueError(f"{outlook}: give times that are not negative")
    done = {choice: price(outlook) for choice, price in _PRICES.items()}
    best = min(done, key=lambda choice: done[choice])
    if math.isinf(done[best]):
        raise ValueError(f"{outlook}: no way ends: no spare is coming, and too few members are left")
    others = ", ".join(f"{choice} {_seconds(done[choice])}" for choice in done if choice is not best)
    return best, f"{best}: {outlook.steps_left} steps are done in {_seconds(done[best])} ({others})"


def _stay(outlook: Outlook) -> float:
    return _steps(outlook.steps_left, outlook.step_now_s)


def _swap(outlook: Outlook) -> float:
    if outlook.arrival_s > 0:
        return math.inf
    return outlook.admit_s + _steps(outlook.steps_left, outlook.step_full_s)


def _wait(outlook: Outlook) -> float:
    return outlook.arrival_s + outlook.admit_s + _steps(outlook.steps_left, outlook.step_full_s)


def _shrink(outlook: Outlook) -> float:
    """Without the spare to the end, or until the first step boundary behind its arrival."""
    alone = outlook.shrink_s + _steps(outlook.steps_left, outlook.step_shrunk_s)
    if math.isinf(alone) or math.isinf(outlook.arrival_s) or outlook.step_shrunk_s == 0:
        return alone
    before = min(math.ceil(max(outlook.arrival_s - outlook.shrink_s, 0.0) / outlook.step_shrunk_s), outlook.steps_left)
    rest = outlook.steps_left - before
    grown = outlook.shrink_s + before * outlook.step_shrunk_s + outlook.admit_s + _steps(rest, outlook.step_full_s)
    return min(alone, grown)


_PRICES: dict[Choice, Callable[[Outlook], float]] = {
    Choice.STAY: _stay,
    Choice.SWAP: _swap,
    Choice.SHRINK: _shrink,
    Choice.WAIT: _wait,
}


def _steps(count: int, step_s: float) -> float:
    """No steps take no time, however long each would."""
    return count * step_s if count else 0.0


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"
