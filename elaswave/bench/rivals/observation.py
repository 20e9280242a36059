"""What a kill has cost, from the commits of the workers; the same arithmetic for every contender. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

HEALTHY_STEPS = 20
"""Most recent steps before the kill that tell how long a healthy step takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A worker says that a step is complete.

    Attributes:
        slot: of the worker in the job.
        pid: of the worker.
        step: number of the step.
        begun: wall seconds at which the attempt began.
        t: wall seconds of the commit.
    """

    slot: int
    pid: int
    step: int
    begun: float
    t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One kill.

    Attributes:
        mttr_s: from the kill to the slowest survivor's next committed step.
        stall_s: that less a healthy step.
        healthy_step_s: median over the survivors' last steps before the kill.
        back_s: from the kill to the first step that the replacement has a part in.
    """

    mttr_s: float
    stall_s: float
    healthy_step_s: float
    back_s: float


def healthy_step_s(commits: Iterable[Commit], killed: float, slots: Sequence[int]) -> float:
    """Median time between commits of the same worker, over its last steps before the kill."""
    gaps: list[float] = []
    ordered = sorted(commits, key=lambda commit: commit.t)
    for slot in slots:
        times = [commit.t for commit in ordered if commit.slot == slot and commit.t <= killed][-HEALTHY_STEPS - 1 :]
        gaps += [later - earlier for earlier, later in pairwise(times)]
    return median(gaps)


def next_commits(commits: Iterable[Commit], killed: float, slots: Sequence[int]) -> list[Commit] | None:
    """Each survivor's first commit of an attempt that began after the kill; None while one is missing.

    An older attempt does not count: it may still be completed by a reduction that was over before the kill.
    """
    found: dict[int, Commit] = {}
    for commit in sorted(commits, key=lambda commit: commit.t):
        if commit.slot in slots and commit.begun > killed:
            found.setdefault(commit.slot, commit)
    return list(found.values()) if len(found) == len(slots) else None


def new_steps(commits: Iterable[Commit], killed: float, slots: Sequence[int]) -> list[Commit] | None:
    """Each slot's first commit of a step that nobody had committed before everybody was started again.

    None while one is missing. Steps that are computed for the second time do not count.
    """
    known = sorted(commits, key=lambda commit: commit.t)
    old = {commit.pid for commit in known if commit.t <= killed}
    last = max((commit.step for commit in known if commit.pid in old), default=0)
    found: dict[int, Commit] = {}
    for commit in known:
        if commit.slot in slots and commit.pid not in old and commit.step > last:
            found.setdefault(commit.slot, commit)
    return list(found.values()) if len(found) == len(slots) else None


def back(commits: Iterable[Commit], killed: float, slot: int, pid: int) -> Commit | None:
    """The first commit of the process that took the killed one's place."""
    later = [commit for commit in commits if commit.slot == slot and commit.pid != pid and commit.t > killed]
    return min(later, key=lambda commit: commit.t, default=None)
