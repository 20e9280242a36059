"""How long each recovery took, phase by phase: from the fault to the slowest survivor's next committed step."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from elaswave.events import Phase
from elaswave.report.facts import Commit, Fault, History, Membership, Recovered, Span

HEALTHY_STEPS = 50
"""Most recent steps before a fault that tell how long a healthy step takes."""


_NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One change of membership after a loss, seen from its slowest survivor.

    Attributes:
        epoch: of the view that replaced the lost members.
        step: last committed step when it happened.
        cause: what happened, in words.
        lost_ranks: ranks whose worker died.
        lost_workers: their worker ids.
        fault_t: wall seconds of the fault, None when nothing tells.
        fault_time_source: `fault` (stamped before it was done), `death` (earliest evidence) or `phase` (the survivor's
            own first phase: the true fault was earlier).
        slowest_rank: the survivor whose next commit came last.
        phases_s: the seven phases of that survivor, from the fault on, gaps counted to the phase before them.
        redo_s: from the end of the last phase to its next commit: the interrupted step, computed again.
        mttr_s: sum of `phases_s` and `redo_s`; None when no survivor has committed a step since.
        stall_s: `mttr_s` less a median healthy step.
        recomputed: micro-batches that were computed again, in whole or in part, over all workers.
        recomputed_share: that work as a share of the work of a step; all that the lost were to do counts as done.
        bytes_moved: received by all workers.
        plan: the plan's reason.
        superseded_by: epoch of a later recovery that began before this one led to a commit.
    """

    epoch: int
    step: int
    cause: str
    lost_ranks: tuple[int, ...]
    lost_workers: tuple[str, ...]
    fault_t: float | None
    fault_time_source: str
    committed_t: float | None
    slowest_rank: int | None
    phases_s: Mapping[str, float]
    redo_s: float | None
    mttr_s: float | None
    stall_s: float | None
    recomputed: int
    recomputed_share: float
    bytes_moved: int
    plan: str
    superseded_by: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of membership in which nobody was lost, made between two steps.

    Attributes:
        stall_s: time between the slowest member's commits before and after, less a median healthy step.
    """

    t: float
    epoch: int
    step: int
    cause: str
    members: int
    stall_s: float | None
    bytes_moved: int
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Healing:
    """State that was found damaged, and brought back from good copies by the same members.

    Attributes:
        step: that the job went on after; older than the last committed one when no good copy of that was left.
        cause: what was found, in words.
        found: what was damaged, and at which rank.
        stall_s: as in `Change`.
        recomputed, recomputed_share: as in `Recovery`.
    """

    t: float
    epoch: int
    step: int
    cause: str
    found: tuple[str, ...]
    stall_s: float | None
    recomputed: int
    recomputed_share: float
    bytes_moved: int


def recoveries(history: History) -> tuple[Recovery, ...]:
    """Every recovery from a loss, in order of epoch."""
    groups = {epoch: group for epoch, group in _by_epoch(history.recovered).items() if any(r.lost for r in group)}
    if not groups:
        return ()
    commits_of = commits_by_worker(history.commits)
    phases_of: dict[str, list[Span]] = {}
    names = set(Phase)
    for span in history.spans:
        if span.name in names:
            phases_of.setdefault(span.worker_id, []).append(span)
    return tuple(_recovery(history, epoch, group, commits_of, phases_of) for epoch, group in sorted(groups.items()))


def changes(history: History) -> tuple[Change, ...]:
    """Every change without a loss after the job's first view, in order of epoch."""
    groups = sorted(_by_epoch(history.recovered).items())
    first = groups[0][0] if groups else 0
    commits_of = commits_by_worker(history.commits)
    return tuple(
        _change(history, epoch, group, commits_of)
        for epoch, group in groups
        if epoch != first and not any(recovered.lost for recovered in group)
    )


def healings(history: History) -> tuple[Healing, ...]:
    """Every time that damage was healed, in order of time."""
    commits_of = commits_by_worker(history.commits)
    groups: dict[tuple[int, int], list[Recovered]] = {}
    for epoch, group in _rounds(history.recovered).items():
        for number, members in enumerate(group[1:]):
            groups[epoch, number] = members
    return tuple(_healing(history, group, commits_of) for group in groups.values())


def _healing(history: History, group: Sequence[Recovered], commits_of: Mapping[str, Sequence[Commit]]) -> Healing:
    stalls = [stall for one in group if (stall := _gap_s(commits_of.get(one.worker_id, ()), one)) is not None]
    start, end = min(one.t - sum(one.phases_s.values()) for one in group), max(one.t for one in group)
    notes = [note for note in history.notes if note.kind == "damage" and start <= note.t <= end]
    return Healing(
        t=min(one.t for one in group),
        epoch=group[0].epoch,
        step=group[0].step,
        cause=group[0].cause,
        found=tuple(sorted({f"rank {note.rank}: {note.text}" for note in notes})),
        stall_s=max(stalls, default=None),
        recomputed=sum(one.recomputed for one in group),
        recomputed_share=max(one.recomputed_share for one in group),
        bytes_moved=sum(one.bytes_moved for one in group),
    )


def commits_by_worker(commits: Iterable[Commit]) -> dict[str, list[Commit]]:
    """Each worker's commits, in the order given."""
    found: dict[str, list[Commit]] = {}
    for commit in commits:
        found.setdefault(commit.worker_id, []).append(commit)
    return found


def healthy_step_s(own: Sequence[Commit], before_t: float) -> float | None:
    """Median seconds of a worker's last healthy steps before a time; the first step in a view is not one of them.

    Args:
        own: that worker's commits, in order of time.
    """
    seconds: list[float] = []
    for before, commit in pairwise(own[: bisect_left(own, before_t, key=lambda commit: commit.t)]):
        if commit.step_s is not None and before.epoch == commit.epoch:
            seconds.append(commit.step_s)
    return median(seconds[-HEALTHY_STEPS:]) if seconds else None


def _by_epoch(recovered: Iterable[Recovered]) -> dict[int, list[Recovered]]:
    """How each view was entered."""
    return {epoch: rounds[0] for epoch, rounds in _rounds(recovered).items()}


def _rounds(recovered: Iterable[Recovered]) -> dict[int, list[list[Recovered]]]:
    """Per view, who told of entering it, and then of every time that its members healed damage."""
    groups: dict[int, list[list[Recovered]]] = {}
    seen: dict[tuple[int, str], int] = {}
    for one in recovered:
        number = seen[one.epoch, one.worker_id] = seen.get((one.epoch, one.worker_id), -1) + 1
        rounds = groups.setdefault(one.epoch, [])
        rounds.extend([] for _ in range(number + 1 - len(rounds)))
        rounds[number].append(one)
    return groups


def _recovery(
    history: History,
    epoch: int,
    group: Sequence[Recovered],
    commits_of: Mapping[str, Sequence[Commit]],
    phases_of: Mapping[str, Sequence[Span]],
) -> Recovery:
    lost = _lost_workers(history, epoch)
    lost_ranks = tuple(sorted({rank for one in group for rank in one.lost} | {member.rank for member in lost}))
    told = [one for one in group if one.lost]
    survivors = [one for one in told if _was_member(history, one)] or told
    phases = {one.worker_id: phases_of.get(one.worker_id, ()) for one in survivors}
    fault_t, source = _fault_time(history, lost_ranks, lost, survivors, phases)
    commits = {one.worker_id: _next_commit(commits_of.get(one.worker_id, ()), one, fault_t) for one in survivors}
    dead = {member.worker_id for member in history.members if member.lost}
    awaited = [one for one in survivors if commits[one.worker_id] or one.worker_id not in dead] or survivors
    slowest = max(awaited, key=lambda one: _commit_t(commits[one.worker_id]))
    slowest_t = _commit_t(commits[slowest.worker_id])
    committed_t = None if slowest_t == _NEVER else slowest_t
    phases_s, redo_s = _tile(phases[slowest.worker_id], slowest.phases_s, fault_t, committed_t)
    mttr_s = None if committed_t is None or fault_t is None else committed_t - fault_t
    step_s = healthy_step_s(commits_of.get(slowest.worker_id, ()), fault_t or slowest.t)
    return Recovery(
        epoch=epoch,
        step=min(one.step for one in survivors),
        cause=_cause(history, told, lost_ranks, lost),
        lost_ranks=lost_ranks,
        lost_workers=tuple(member.worker_id for member in lost),
        fault_t=fault_t,
        fault_time_source=source,
        committed_t=committed_t,
        slowest_rank=slowest.rank,
        phases_s=phases_s,
        redo_s=redo_s,
        mttr_s=mttr_s,
        stall_s=None if mttr_s is None or step_s is None else mttr_s - step_s,
        recomputed=sum(one.recomputed for one in group),
        recomputed_share=max(one.recomputed_share for one in group),
        bytes_moved=sum(one.bytes_moved for one in group),
        plan=next((one.plan for one in told if one.plan), ""),
        superseded_by=_superseded_by(history.recovered, slowest, committed_t),
    )


def _lost_workers(history: History, epoch: int) -> tuple[Membership, ...]:
    """Members that died between the recovery before and this one, also in views that led to no recovery."""
    new = history.view_at(epoch)
    settled = max((one.epoch for one in history.recovered if one.epoch < epoch), default=0)
    before = frozenset[str]().union(*(v.worker_ids() for v in history.views if settled <= v.epoch < epoch))
    gone = before - new.worker_ids() if new else frozenset()
    return tuple(member for member in history.members if member.lost and member.worker_id in gone)


def _was_member(history: History, one: Recovered) -> bool:
    """Whether a worker was in the job before the view it reports on."""
    return any(view.epoch < one.epoch and one.worker_id in view.worker_ids() for view in history.views)


def _fault_time(
    history: History,
    lost_ranks: Sequence[int],
    lost: Sequence[Membership],
    survivors: Sequence[Recovered],
    phases: Mapping[str, Sequence[Span]],
) -> tuple[float | None, str]:
    """When it happened, and how that is known."""
    until = min(one.t for one in survivors)
    if faults := _faults(history, lost_ranks, lost, until):
        return min(fault.t for fault in faults), "fault"
    workers = {member.worker_id for member in lost}
    if deaths := [death.t for death in history.deaths if death.worker_id in workers and death.t <= until]:
        return min(deaths), "death"
    epochs = {one.epoch for one in survivors}
    starts = [span.t0 for spans in phases.values() for span in spans if span.epoch in epochs]
    return (min(starts), "phase") if starts else (None, "unknown")


def _faults(history: History, lost_ranks: Sequence[int], lost: Sequence[Membership], until: float) -> list[Fault]:
    """Faults that were done to the lost workers; by rank alone where their pids are unknown."""
    pids = {member.pid for member in lost if member.pid is not None}
    return [
        fault
        for fault in history.faults
        if fault.t <= until and fault.rank in lost_ranks and (not pids or fault.pid is None or fault.pid in pids)
    ]


def _cause(history: History, told: Sequence[Recovered], lost_ranks: Sequence[int], lost: Sequence[Membership]) -> str:
    """What was done, else what the node saw, else what the survivors say."""
    faults = _faults(history, lost_ranks, lost, min(one.t for one in told))
    if faults:
        points = sorted({f"{fault.what} in {fault.phase}" if fault.phase else fault.what for fault in faults})
        return ", ".join(points)
    workers = {member.worker_id for member in lost}
    evidence = sorted({death.evidence for death in history.deaths if death.worker_id in workers and death.evidence})
    return ", ".join(evidence) or next((one.cause for one in told if one.cause), "lost")


def _next_commit(own: Sequence[Commit], one: Recovered, fault_t: float | None) -> Commit | None:
    """The worker's first commit of a new step after the fault, in this view or a later one."""
    start = 0 if fault_t is None else bisect_right(own, fault_t, key=lambda commit: commit.t)
    return next((commit for commit in own[start:] if commit.epoch >= one.epoch and commit.step > one.step), None)


def _commit_t(commit: Commit | None) -> float:
    return _NEVER if commit is None else commit.t


def _tile(
    spans: Sequence[Span], told_s: Mapping[str, float], fault_t: float | None, committed_t: float | None
) -> tuple[dict[str, float], float | None]:
    """Cut the time from the fault to the commit into phases that add up, and what is left for the step itself.

    Every phase lasts until the next one starts; everything before the second phase is DETECT.

    Returns:
        seconds by phase, all seven; seconds between the end of the last phase and the commit.
    """
    phases_s = {str(phase): 0.0 for phase in Phase}
    end = committed_t if committed_t is not None else _NEVER
    inside = [s for s in spans if fault_t is not None and s.t1 > fault_t and s.t0 < end and s.name != Phase.DETECT]
    if fault_t is None or not inside:
        phases_s.update({name: told_s[name] for name in phases_s if name in told_s})
        left_s = None if committed_t is None or fault_t is None else committed_t - fault_t - sum(phases_s.values())
        return phases_s, left_s
    last_t = min(end, inside[-1].t1)
    starts = [fault_t, *(max(fault_t, span.t0) for span in inside), last_t]
    names = [str(Phase.DETECT), *(span.name for span in inside)]
    for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True):
        phases_s[name] += stop - start
    return phases_s, None if committed_t is None else committed_t - last_t


def _superseded_by(recovered: Sequence[Recovered], slowest: Recovered, committed_t: float | None) -> int | None:
    end = _NEVER if committed_t is None else committed_t
    later = [one.epoch for one in recovered if one.lost and one.epoch > slowest.epoch and slowest.t < one.t < end]
    return min(later, default=None)


def _change(
    history: History, epoch: int, group: Sequence[Recovered], commits_of: Mapping[str, Sequence[Commit]]
) -> Change:
    members = [one for one in group if _was_member(history, one)] or group
    stalls = [stall for one in members if (stall := _gap_s(commits_of.get(one.worker_id, ()), one)) is not None]
    view = history.view_at(epoch)
    return Change(
        t=min(one.t for one in group),
        epoch=epoch,
        step=max(one.step for one in members),
        cause=(view.reason if view else "") or members[0].cause,
        members=len(view.members) if view else len(group),
        stall_s=max(stalls, default=None),
        bytes_moved=sum(one.bytes_moved for one in group),
        plan=next((one.plan for one in members if one.plan), ""),
    )


def _gap_s(own: Sequence[Commit], one: Recovered) -> float | None:
    """Time between a worker's commits around its report, less its healthy step."""
    place = bisect_right(own, one.t, key=lambda commit: commit.t)
    step_s = healthy_step_s(own, one.t)
    if not 0 < place < len(own) or step_s is None:
        return None
    return max(0.0, own[place].t - own[place - 1].t - step_s)
