"""The facts a report is made of, as frozen values; times are wall seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One rank's report that a step is complete.

    Attributes:
        micro_batches: ids whose loss this rank computed; in a pipeline only workers of the last layer have any.
        counted: micro-batches in the global sum according to the vote, None when not told.
        tokens: of the whole step.
    """

    t: float
    rank: int
    worker_id: str
    step: int
    epoch: int
    loss: float | None
    digest: str | None
    micro_batches: tuple[int, ...]
    tokens: int
    step_s: float | None
    counted: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChange:
    """A view, when it was first seen anywhere; `members` are (rank, worker_id, pid)."""

    t: float
    epoch: int
    members: tuple[tuple[int, str, int], ...]
    reason: str
    paused: bool

    def worker_ids(self) -> frozenset[str]:
        return frozenset(worker_id for _, worker_id, _ in self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """One worker's report that it has come through a recovery."""

    t: float
    rank: int
    worker_id: str
    epoch: int
    step: int
    lost: tuple[int, ...]
    cause: str
    phases_s: Mapping[str, float]
    recomputed: int
    recomputed_share: float
    bytes_moved: int
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Harm that was done on purpose, stamped before it was done.

    Attributes:
        flip: of a flipped bit: target and seed, and for a copy its shard, as a scenario tells them.
        where: of a flipped bit, in words.
    """

    t: float
    what: str
    rank: int | None
    pid: int | None
    step: int | None
    phase: str | None
    flip: Mapping[str, str | int] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A death as a node's service saw it."""

    t: float
    worker_id: str
    rank: int | None
    pid: int | None
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A timed block of one worker: a stage of a step or a phase of a recovery."""

    name: str
    t0: float
    t1: float
    rank: int | None
    worker_id: str
    step: int | None
    epoch: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The time one worker held a rank.

    Attributes:
        joined_t: wall seconds of its first sign of life in the job.
        joined_step: last committed step when it joined.
        left_t: None while it is a member, or when the run ended with it.
        left_step: last committed step of the job when it went.
        reason: why it went, as its node or it itself told; `""` when it stayed to the end.
        lost: it died, rather than leave on purpose or see the end.
    """

    rank: int
    worker_id: str
    pid: int | None
    joined_t: float
    joined_step: int
    left_t: float | None
    left_step: int | None
    reason: str
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An error, damage that was found, a checkpoint or other remark, as one line."""

    t: float
    kind: str
    rank: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything a report is made of, each list in order of time.

    Attributes:
        config: the run's settings as nested mappings; empty when unknown.
        command: how the run was started, when it was told.
        skipped: events that could not be understood.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    command: str = ""
    started_t: float = 0.0
    ended_t: float = 0.0
    members: tuple[Membership, ...] = ()
    views: tuple[ViewChange, ...] = ()
    commits: tuple[Commit, ...] = ()
    recovered: tuple[Recovered, ...] = ()
    faults: tuple[Fault, ...] = ()
    deaths: tuple[Death, ...] = ()
    spans: tuple[Span, ...] = ()
    notes: tuple[Note, ...] = ()
    skipped: int = 0

    def setting(self, section: str, key: str) -> Any:
        """A value of the config, None when unknown."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, Mapping) else None

    def view_at(self, epoch: int) -> ViewChange | None:
        return next((view for view in self.views if view.epoch == epoch), None)
