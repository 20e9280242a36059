"""What happens to a primary, and what it wants done: the values that go into and come out of `Coordinator.handle`."""

from dataclasses import dataclass

from elaswave.coordination.protocol import Message, NodeHello
from elaswave.topology import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the job needs: nodes to form, workers to run."""

    min_nodes: int = 1
    min_workers: int = 1


@dataclass(frozen=True, slots=True)
class NodeConnected:
    """A node introduced itself, for the first time or again. `host` is where its connection comes from."""

    hello: NodeHello
    host: str


@dataclass(frozen=True, slots=True)
class NodeSaid:
    node_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class NodeDisconnected:
    node_id: str


@dataclass(frozen=True, slots=True)
class NodeGone:
    """The node said goodbye, or its process was seen to end: its workers are dead."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Slept:
    """This process did not run for a while, so nobody's silence means anything."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = NodeConnected | NodeSaid | NodeDisconnected | NodeGone | Slept | Tick


@dataclass(frozen=True, slots=True)
class Send:
    node_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection to a node."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Published:
    """A view was published; for the record."""

    view: View


@dataclass(frozen=True, slots=True)
class StepDown:
    """Without a quorum this process must not lead, and its workers must stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The job gave up."""

    reason: str


Action = Send | Drop | Published | StepDown | End
