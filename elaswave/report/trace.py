"""The run as a Chrome trace for Perfetto (ui.perfetto.dev): a lane per worker, stages, phases, faults and views.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from collections.abc import Iterator
from typing import Any

from elaswave.events import Phase
from elaswave.report.facts import History, Membership

NODE_PID = 0
"""Lane group of what concerns the whole job; rank r is group r + 1."""

_PHASES = frozenset(str(phase) for phase in Phase)


def trace(history: History) -> dict[str, Any]:
    """Chrome trace events, times in microseconds from the start of the run."""
    return {"displayTimeUnit": "ms", "traceEvents": [*_lanes(history), *_spans(history), *_instants(history)]}


def _lanes(history: History) -> Iterator[dict[str, Any]]:
    yield _name("process_name", NODE_PID, 0, "job")
    for rank in sorted({member.rank for member in history.members}):
        yield _name("process_name", rank + 1, 0, f"rank {rank}")
        yield {"ph": "M", "name": "process_sort_index", "pid": rank + 1, "tid": 0, "args": {"sort_index": rank + 1}}
    for lane, member in _lane_of(history).values():
        yield _name("thread_name", member.rank + 1, lane, f"worker {member.worker_id} (pid {member.pid})")


def _spans(history: History) -> Iterator[dict[str, Any]]:
    lanes = _lane_of(history)
    for span in history.spans:
        if span.worker_id not in lanes:
            continue
        lane, member = lanes[span.worker_id]
        yield {
            "ph": "X",
            "name": span.name,
            "cat": "recovery" if span.name in _PHASES else "step",
            "pid": member.rank + 1,
            "tid": lane,
            "ts": _us(history, span.t0),
            "dur": max(0.0, round(1e6 * (span.t1 - span.t0), 1)),
            "args": {"step": span.step, "epoch": span.epoch},
        }


def _instants(history: History) -> Iterator[dict[str, Any]]:
    for fault in history.faults:
        pid = NODE_PID if fault.rank is None else fault.rank + 1
        yield _instant(history, fault.t, f"{fault.what} rank {fault.rank}", "fault", pid, "g")
    for death in history.deaths:
        pid = NODE_PID if death.rank is None else death.rank + 1
        yield _instant(history, death.t, f"death seen: {death.evidence}", "fault", pid, "p")
    for view in history.views:
        yield _instant(history, view.t, f"view {view.epoch}: {view.reason}", "view", NODE_PID, "g")
    for note in history.notes:
        pid = NODE_PID if note.rank is None else note.rank + 1
        yield _instant(history, note.t, f"{note.kind}: {note.text}", note.kind, pid, "p")


def _lane_of(history: History) -> dict[str, tuple[int, Membership]]:
    """Worker id -> its lane within its rank, and itself."""
    next_lane: dict[int, int] = {}
    found = {}
    for member in history.members:
        next_lane[member.rank] = next_lane.get(member.rank, 0) + 1
        found[member.worker_id] = (next_lane[member.rank], member)
    return found


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _instant(history: History, t: float, name: str, category: str, pid: int, scope: str) -> dict[str, Any]:
    return {"ph": "i", "name": name, "cat": category, "pid": pid, "tid": 0, "ts": _us(history, t), "s": scope}


def _us(history: History, t: float) -> float:
    return round(1e6 * (t - history.started_t), 1)
