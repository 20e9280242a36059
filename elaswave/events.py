"""Every fact the system reports, and the seven phases of a recovery.

An event is one JSON object: `t` (wall seconds), `kind` (a name from `Kind`), `rank`, `worker_id`, `pid`, and the
fields of its kind. The same objects feed the JSONL files, the console, the trace and the report.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, Protocol

from elaswave.clock import SYSTEM, Clock


class Phase(StrEnum):
    """The seven phases of a recovery, in order."""

    DETECT = "detect"
    AGREE = "agree"
    PLAN = "plan"
    RELINK = "relink"
    RESTORE = "restore"
    MIGRATE = "migrate"
    RESUME = "resume"


class Stage(StrEnum):
    """The parts of a healthy step, in order."""

    FORWARD = "forward"
    BACKWARD = "backward"
    REDUCE = "reduce"
    VOTE = "vote"
    STEP = "step"
    GATHER = "gather"
    COMMIT = "commit"
    SNAPSHOT = "snapshot"


class Kind(StrEnum):
    """What happened; the comment names the fields that go with it."""

    RUN = "run"  # config, name, workers, command (how to start the same again; may be absent)
    JOINED = "joined"  # epoch, step
    LEFT = "left"  # step, reason
    VIEW = "view"  # epoch, members [[rank, worker_id, pid]], reason, paused
    SPAN = "span"  # name (a Phase or Stage), t0, t1 (wall seconds), step, and the fields of the span
    # step, epoch, loss, tokens (of the whole step), digest, micro_batches [ids of this rank], step_s,
    # counted (micro-batches in the global sum, as the vote told; may be absent)
    STEP_COMMITTED = "step_committed"
    # epoch, step (the last committed one), lost [ranks], cause, phases_s {phase: s}, plan (its reason),
    # recomputed (micro-batches computed again of which this worker does the first part), recomputed_share (of the work
    # of a step, over all workers), bytes_moved (received by this worker); told again in the same epoch when damage was
    # healed
    RECOVERY = "recovery"
    # what, target_rank, target_pid, step, phase: written before it is done; of a flip target, seed, where, shard,
    # version, tensor, element, bit too
    FAULT = "fault"
    DEATH = "death"  # worker_id, rank, pid, evidence: written by the node's service
    SPARE = "spare"  # what (ready, activated), pid
    METRICS = "metrics"  # step, and whatever numbers the script logs
    CHECKPOINT = "checkpoint"  # step, path, bytes
    ERROR = "error"  # message; of damage damaged (own shard, copy of shard, weights), shard or unit, and step too


class Sink(Protocol):
    """Where events go. A sink never raises into training."""

    def emit(self, event: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Recorder:
    """Stamps events with who and when, and hands them to the sinks.

    Args:
        sinks: receivers, called in order.
        identity: fields that every event carries, such as rank, worker_id and pid.
        clock: source of the wall time.
    """

    def __init__(
        self, sinks: tuple[Sink, ...] = (), identity: Mapping[str, Any] | None = None, clock: Clock = SYSTEM
    ) -> None:
        self._sinks = sinks
        self.identity: dict[str, Any] = dict(identity or {})
        self.clock = clock

    def emit(self, kind: Kind, **fields: Any) -> None:
        event = {"t": self.clock.wall(), "kind": str(kind), **self.identity, **fields}
        for sink in self._sinks:
            sink.emit(event)

    @contextmanager
    def _span(self, name: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        t0 = self.clock.wall()
        try:
            yield fields
        finally:
            self.emit(Kind.SPAN, name=name, t0=t0, t1=self.clock.wall(), **fields)

    def span(self, name: Phase | Stage, **fields: Any) -> AbstractContextManager[dict[str, Any]]:
        """Time a block; the yielded dict takes further fields, and the event is written even when it raises."""
        return self._span(str(name), fields)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
