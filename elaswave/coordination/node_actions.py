"""What a node's core wants done: messages, connections, kills, and facts for the record."""

from dataclasses import dataclass

from elaswave.coordination.coordinator_events import Published
from elaswave.coordination.failover import Dial
from elaswave.coordination.protocol import Message, NodeEntry, Suspect
from elaswave.errors import ElasWaveError


@dataclass(frozen=True, slots=True)
class ToWorker:
    worker_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Kill:
    """End this process; `worker_id` is empty when it has not introduced itself yet."""

    worker_id: str
    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Died:
    """For the record."""

    worker_id: str
    rank: int
    pid: int
    evidence: str


@dataclass(frozen=True, slots=True)
class SpareReady:
    """For the record."""

    worker_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class SpareUsed:
    """For the record."""

    worker_id: str
    pid: int
    local_rank: int


@dataclass(frozen=True, slots=True)
class Complain:
    """To the primary: a local worker does not hear from another one."""

    suspect: Suspect


WorkerAction = ToWorker | Kill | Died | SpareReady | SpareUsed | Complain


@dataclass(frozen=True, slots=True)
class ToPeer:
    """To a node that connected to us."""

    peer: int
    message: Message


@dataclass(frozen=True, slots=True)
class ClosePeer:
    peer: int


@dataclass(frozen=True, slots=True)
class ToPrimary:
    """To the node that we connected to."""

    message: Message


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the connection to the primary, or the attempt to make one."""


@dataclass(frozen=True, slots=True)
class WatchNode:
    """Report when this process of another node on our host ends."""

    entry: NodeEntry


@dataclass(frozen=True, slots=True)
class Ended:
    """This node is out of the job."""

    error: ElasWaveError


Action = WorkerAction | Dial | ToPeer | ClosePeer | ToPrimary | CloseLink | WatchNode | Published | Ended
