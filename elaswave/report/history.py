"""What happened in a run, as one frozen value: events in, typed facts out.

Events with missing or impossible fields are counted and left out: a killed process may tear its last line, and a
report must be possible for every run.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from elaswave.events import Kind
from elaswave.report.facts import Commit, Death, Fault, History, Note, Recovered, Span, ViewChange
from elaswave.report.members import memberships
from elaswave.report.values import Event, attempt, integer, is_number, mapping, number


def history_build(events: Iterable[Event], config: Mapping[str, Any] | None = None) -> History:
    """Sort the events of a run into a history.

    Args:
        events: of all processes, in any order.
        config: the run's settings; taken from the RUN event when not given.
    """
    ordered = sorted((event for event in events if is_number(event.get("t"))), key=lambda event: event["t"])
    found: dict[type, list[Any]] = {kind: [] for kind in (Commit, ViewChange, Recovered, Fault, Death, Span, Note)}
    skipped = 0
    for event in ordered:
        read = _READERS.get(str(event.get("kind")))
        fact = attempt(read, event) if read else None
        if fact is not None:
            found[type(fact)].append(fact)
        elif read:
            skipped += 1
    run = next((event for event in ordered if event.get("kind") == Kind.RUN), {})
    first: dict[int, ViewChange] = {}
    for view in found[ViewChange]:
        first.setdefault(view.epoch, view)
    views = tuple(first[epoch] for epoch in sorted(first))
    settings = config or mapping(run.get("config"))
    last_step = integer(mapping(settings.get("training")).get("steps"))
    return History(
        config=settings,
        name=str(run.get("name") or mapping(settings.get("run")).get("name") or ""),
        command=str(run.get("command", "")),
        started_t=float(ordered[0]["t"]) if ordered else 0.0,
        ended_t=float(ordered[-1]["t"]) if ordered else 0.0,
        members=memberships(ordered, views, found[Commit], found[Death], last_step),
        views=views,
        commits=tuple(found[Commit]),
        recovered=tuple(found[Recovered]),
        faults=tuple(found[Fault]),
        deaths=tuple(found[Death]),
        spans=tuple(sorted(found[Span], key=lambda span: span.t0)),
        notes=tuple(found[Note]),
        skipped=skipped,
    )


# -- one reader per kind ------------------------------------------------------------------------------------------


def _commit(e: Event) -> Commit:
    return Commit(
        t=float(e["t"]),
        rank=int(e["rank"]),
        worker_id=str(e["worker_id"]),
        step=int(e["step"]),
        epoch=int(e.get("epoch", 0)),
        loss=number(e.get("loss")),
        digest=None if e.get("digest") is None else str(e["digest"]),
        micro_batches=tuple(int(m) for m in e.get("micro_batches") or ()),
        tokens=int(e.get("tokens") or 0),
        step_s=number(e.get("step_s")),
        counted=None if e.get("counted") is None else int(e["counted"]),
    )


def _view(e: Event) -> ViewChange:
    return ViewChange(
        t=float(e["t"]),
        epoch=int(e["epoch"]),
        members=tuple((int(rank), str(worker_id), int(pid)) for rank, worker_id, pid in e["members"]),
        reason=str(e.get("reason", "")),
        paused=bool(e.get("paused")),
    )


def _recovered(e: Event) -> Recovered:
    plan = e.get("plan")
    return Recovered(
        t=float(e["t"]),
        rank=int(e["rank"]),
        worker_id=str(e["worker_id"]),
        epoch=int(e["epoch"]),
        step=int(e.get("step", 0)),
        lost=tuple(int(rank) for rank in e.get("lost") or ()),
        cause=str(e.get("cause", "")),
        phases_s={str(name): float(seconds) for name, seconds in mapping(e.get("phases_s")).items()},
        recomputed=int(e.get("recomputed") or 0),
        recomputed_share=number(e.get("recomputed_share")) or 0.0,
        bytes_moved=int(e.get("bytes_moved") or 0),
        plan=str(mapping(plan).get("reason", "")) if isinstance(plan, Mapping) else str(plan or ""),
    )


def _fault(e: Event) -> Fault:
    return Fault(
        t=float(e["t"]),
        what=str(e.get("what", "fault")),
        rank=integer(e.get("target_rank")),
        pid=integer(e.get("target_pid")),
        step=integer(e.get("step")),
        phase=None if e.get("phase") is None else str(e["phase"]),
        flip=_flip(e) if e.get("what") == "flip" else {},
        where=str(e.get("where", "")),
    )


def _flip(e: Event) -> dict[str, str | int]:
    told: dict[str, str | int] = {"target": str(e.get("target", "shard")), "seed": int(e.get("seed") or 0)}
    return told | {"shard": int(e["shard"])} if told["target"] == "copy" else told


def _death(e: Event) -> Death:
    return Death(
        t=float(e["t"]),
        worker_id=str(e["worker_id"]),
        rank=integer(e.get("rank")),
        pid=integer(e.get("pid")),
        evidence=str(e.get("evidence", "")),
    )


def _span(e: Event) -> Span:
    return Span(
        name=str(e["name"]),
        t0=float(e["t0"]),
        t1=float(e["t1"]),
        rank=integer(e.get("rank")),
        worker_id=str(e.get("worker_id") or e.get("node_id") or ""),
        step=integer(e.get("step")),
        epoch=integer(e.get("epoch")),
    )


def _error(e: Event) -> Note:
    kind = "damage" if e.get("damaged") else "error"
    return Note(t=float(e["t"]), kind=kind, rank=integer(e.get("rank")), text=str(e.get("message", "")))


def _checkpoint(e: Event) -> Note:
    text = f"checkpoint of step {e.get('step')}: {e.get('path', '')}"
    return Note(t=float(e["t"]), kind="checkpoint", rank=integer(e.get("rank")), text=text)


_READERS: dict[str, Callable[[Event], object]] = {
    Kind.STEP_COMMITTED: _commit,
    Kind.VIEW: _view,
    Kind.RECOVERY: _recovered,
    Kind.FAULT: _fault,
    Kind.DEATH: _death,
    Kind.SPAN: _span,
    Kind.ERROR: _error,
    Kind.CHECKPOINT: _checkpoint,
}
