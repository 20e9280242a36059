"""Decides whether a dead worker is started again, and after what delay (pure).

A worker that crashes young again and again is in a crash loop: each try waits twice as long as the one before
(capped), and tries that fail before the worker was ever a member are given up after a few.
"""

import signal
from dataclasses import dataclass, replace
from enum import StrEnum

from elaswave.coordination.bootstrap import EXIT_FENCED, EXIT_REFUSED


class Action(StrEnum):
    """What becomes of a rank whose process ended."""

    DONE = "done"
    RESTART = "restart"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to slow down, and when to stop.

    Attributes:
        max_restarts: restarts of one rank over the life of its agent.
        max_failed_starts: failures in a row before the worker became a member.
        young_s: a life shorter than this is young.
        backoff_s: delay after the second young death in a row.
        max_backoff_s: longest delay.
    """

    max_restarts: int
    max_failed_starts: int = 5
    young_s: float = 10.0
    backoff_s: float = 0.2
    max_backoff_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened to one rank so far."""

    restarts: int = 0
    young_deaths: int = 0
    failed_starts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process ended.

    Attributes:
        exit_code: as from `Popen.returncode`; a signal is its negative number.
        lived_s: seconds from start (a spare: from taking over the rank) to end.
        joined: it had been a member of a view.
        finished: the job is complete.
    """

    exit_code: int
    lived_s: float
    joined: bool
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do, why, and the history to remember."""

    action: Action
    history: History
    delay_s: float = 0.0
    why: str = ""


def decide(death: Death, history: History, limits: Limits) -> Verdict:
    """Judge one death."""
    if death.exit_code == 0:
        return Verdict(action=Action.DONE, history=history)
    if death.finished:
        return Verdict(action=Action.DONE, history=history, why="the job is complete")
    if death.exit_code == EXIT_REFUSED:
        why = "it was refused, or met an error that any fresh process would meet; see its own message"
        return Verdict(action=Action.GIVE_UP, history=history, why=why)
    seen = _remember(death, history, limits)
    if seen.failed_starts >= limits.max_failed_starts:
        why = f"it failed {seen.failed_starts} times in a row before it could join; see its own message"
        return Verdict(action=Action.GIVE_UP, history=seen, why=why)
    if seen.restarts >= limits.max_restarts:
        why = f"all its restarts are used up (--max-restarts={limits.max_restarts})"
        return Verdict(action=Action.GIVE_UP, history=seen, why=why)
    restarted = replace(seen, restarts=seen.restarts + 1)
    return Verdict(action=Action.RESTART, history=restarted, delay_s=_delay_s(seen.young_deaths, limits))


def _remember(death: Death, history: History, limits: Limits) -> History:
    # a member that is killed did not crash: that was an operator, the kernel's memory manager, or its own node
    killed_at_work = death.joined and death.exit_code == -signal.SIGKILL
    young = death.lived_s < limits.young_s and not killed_at_work
    failed_start = death.exit_code > 0 and death.exit_code != EXIT_FENCED and not death.joined
    return replace(
        history,
        young_deaths=history.young_deaths + 1 if young else 0,
        failed_starts=history.failed_starts + 1 if failed_start else 0,
    )


def _delay_s(young_deaths: int, limits: Limits) -> float:
    if young_deaths < 2:
        return 0.0
    return min(limits.max_backoff_s, limits.backoff_s * 2.0 ** min(young_deaths - 2, 30))


def describe_exit(exit_code: int) -> str:
    """An exit status in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
