"""From signs to suspicion: decides, from what can be seen of a worker or a node, whether it is still alive.

The kernel frees a killed process's memory before it closes its sockets or reports its exit, 0.15 to 0.3 s per
resident GiB. Only a robust mutex reports within milliseconds; the other signs are slower, the lease is the last.
"""

from dataclasses import dataclass
from enum import StrEnum

from elaswave.coordination.timeouts import Timeouts

STOPPED_SHARE = 0.5
"""A process that is silent and in state T is given this share of the lease: it will not answer by itself."""
BUSY_FACTOR = 2.0
"""One that is silent but not stopped may hold its interpreter lock in a long call: it gets the lease this often."""


class Evidence(StrEnum):
    """What gave a death away, fastest first."""

    MUTEX = "its life mutex was abandoned"
    EXIT = "its process ended"
    HANGUP = "its connection broke"
    LAUNCHER = "its launcher saw it end"
    STOPPED = "it is stopped (state T)"
    LEASE = "its lease ran out"
    NEVER_JOINED = "it did not join within the start timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSigns:
    """All that its node can see of a worker.

    Attributes:
        abandoned: the owner of its robust mutex died.
        exited: its process has ended.
        hung_up: its connection is closed.
        reaped: its launcher has reported its end.
        stopped: its process is in state T.
        joined: it has joined; before, it may be importing for minutes and owes no heartbeat.
        suspected: another worker complained about it.
        silence_s: since its last message.
        age_s: since its node first heard of it.
    """

    abandoned: bool = False
    exited: bool = False
    hung_up: bool = False
    reaped: bool = False
    stopped: bool = False
    joined: bool = True
    suspected: bool = False
    silence_s: float = 0.0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A worker counts as dead; `certain` when it can do nothing any more and need not be killed."""

    evidence: Evidence
    certain: bool


def examine_worker(signs: WorkerSigns, timeouts: Timeouts) -> Suspicion | None:
    """The fastest sign that a worker is dead, or None while it counts as alive."""
    if signs.abandoned:
        return Suspicion(evidence=Evidence.MUTEX, certain=False)
    if signs.exited:
        return Suspicion(evidence=Evidence.EXIT, certain=True)
    if signs.reaped:
        return Suspicion(evidence=Evidence.LAUNCHER, certain=True)
    if signs.hung_up:
        return Suspicion(evidence=Evidence.HANGUP, certain=False)
    evidence = _overdue(signs, timeouts)
    return None if evidence is None else Suspicion(evidence=evidence, certain=False)


def _overdue(signs: WorkerSigns, timeouts: Timeouts) -> Evidence | None:
    """Whether a process that is still there has been silent for too long."""
    lease = timeouts.suspicion_s
    patience = 2 * timeouts.heartbeat_s if signs.suspected else max(2 * timeouts.heartbeat_s, lease * STOPPED_SHARE)
    if signs.stopped and signs.silence_s >= patience:
        return Evidence.STOPPED
    if signs.joined:
        return Evidence.LEASE if signs.silence_s >= lease * BUSY_FACTOR else None
    return Evidence.NEVER_JOINED if signs.age_s >= timeouts.start_timeout_s else None


class Standing(StrEnum):
    """What the primary knows of a node."""

    LIVE = "live"
    PENDING = "pending"  # its connection broke a moment ago, or a new primary still waits for it: it may come back
    UNKNOWN = "unknown"  # cut off: its workers may be alive, and may count themselves in
    GONE = "gone"  # its process is known to be dead, and its workers with it


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSigns:
    """All that the primary can see of a node.

    Attributes:
        gone: it said goodbye, or its process was seen to end by somebody on its host.
        disconnected_s: since its connection broke; None while connected.
        patience_s: how long it may take to connect again.
        silence_s: since its last message.
    """

    gone: bool = False
    disconnected_s: float | None = None
    patience_s: float = 0.0
    silence_s: float = 0.0


def examine_node(signs: NodeSigns, timeouts: Timeouts) -> Standing:
    if signs.gone:
        return Standing.GONE
    if signs.disconnected_s is not None:
        return Standing.PENDING if signs.disconnected_s < signs.patience_s else Standing.UNKNOWN
    return Standing.LIVE if signs.silence_s < timeouts.suspicion_s else Standing.UNKNOWN
