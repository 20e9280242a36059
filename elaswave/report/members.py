"""Who held which rank, and when: lifetimes of workers from what they, their nodes and the views tell."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from elaswave.events import Kind
from elaswave.report.facts import Commit, Death, Membership, ViewChange
from elaswave.report.values import Event, integer


def memberships(
    ordered: Sequence[Event],
    views: Sequence[ViewChange],
    commits: Sequence[Commit],
    deaths: Sequence[Death],
    last_step: int | None,
) -> tuple[Membership, ...]:
    """One entry per worker that ever held a rank, in order of rank, then of time.

    Args:
        ordered: all events of the run; like the other arguments in order of time.
        views: in order of epoch.
        last_step: the step after which workers may end; the newest committed one when None.
    """
    joined, left = _first_by_worker(ordered, Kind.JOINED), _first_by_worker(ordered, Kind.LEFT)
    death_of = {death.worker_id: death for death in reversed(deaths)}
    finishers = _finishers(commits, last_step)
    times = [commit.t for commit in commits]
    newest = list(accumulate((commit.step for commit in commits), max))

    def step_at(t: float) -> int:
        place = bisect_right(times, t)
        return newest[place - 1] if place else 0

    found = []
    for worker_id, (rank, pid, seen_t) in _ranks(joined, views).items():
        start = joined.get(worker_id)
        joined_t = min(seen_t, float(start["t"])) if start else seen_t
        own_step = integer(start.get("step")) if start else None
        death = None if worker_id in finishers else death_of.get(worker_id)
        left_t, reason, lost = _end_of(worker_id, left.get(worker_id), death, views)
        found.append(
            Membership(
                rank=rank,
                worker_id=worker_id,
                pid=pid,
                joined_t=joined_t,
                joined_step=max(own_step or 0, step_at(joined_t)),  # a newcomer's own step is 0
                left_t=left_t,
                left_step=None if left_t is None else step_at(left_t),
                reason=reason,
                lost=lost,
            )
        )
    return tuple(sorted(found, key=lambda member: (member.rank, member.joined_t)))


def _ranks(joined: dict[str, Event], views: Sequence[ViewChange]) -> dict[str, tuple[int, int | None, float]]:
    """Worker id -> (rank, pid, first seen): from the views, or from its own word when it died before one told."""
    found: dict[str, tuple[int, int | None, float]] = {}
    for view in views:
        for rank, worker_id, pid in view.members:
            found.setdefault(worker_id, (rank, pid, view.t))
    for worker_id, event in joined.items():
        rank = integer(event.get("rank"))
        if worker_id not in found and rank is not None:
            found[worker_id] = (rank, integer(event.get("pid")), float(event["t"]))
    return found


def _finishers(commits: Sequence[Commit], last_step: int | None) -> frozenset[str]:
    """Workers that committed the job's last step: the end of their process is no loss."""
    last = max((commit.step for commit in commits), default=0) if last_step is None else last_step
    return frozenset(commit.worker_id for commit in commits if commit.step == last)


def _end_of(
    worker_id: str, left: Event | None, death: Death | None, views: Sequence[ViewChange]
) -> tuple[float | None, str, bool]:
    """When and why a worker stopped being a member, and whether it died.

    A planned leave explains the death of its process after it.
    """
    if left is not None:
        return float(left["t"]), str(left.get("reason") or "left"), False
    if death is not None:
        return death.t, death.evidence, True
    held = [view.epoch for view in views if worker_id in view.worker_ids()]
    gone = next((view for view in views if held and view.epoch > held[-1]), None)
    return (gone.t, gone.reason, True) if gone else (None, "", False)


def _first_by_worker(ordered: Sequence[Event], kind: Kind) -> dict[str, Event]:
    found: dict[str, Event] = {}
    for event in ordered:
        if event.get("kind") == kind and event.get("worker_id"):
            found.setdefault(str(event["worker_id"]), event)
    return found
