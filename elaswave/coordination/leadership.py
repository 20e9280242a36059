"""A node's part as the primary: the coordinator, the nodes that have connected to it, and rivals. Does no I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from elaswave.coordination import coordinator_events as primary
from elaswave.coordination.coordinator import Coordinator
from elaswave.coordination.node_actions import ClosePeer, ToPeer
from elaswave.coordination.protocol import (
    Address,
    Bye,
    Claim,
    Message,
    NodeHello,
    Pulse,
    Redirect,
    Turn,
    Turned,
    check_version,
)
from elaswave.errors import ProtocolError, RefusedError


@dataclass(frozen=True, slots=True)
class ToSelf:
    """For the node that the primary runs in."""

    message: Message


Order = ToSelf | ToPeer | ClosePeer | primary.Published | primary.StepDown


class Rivalry(StrEnum):
    """What it means that somebody else says that it leads."""

    NONE = "none"
    YIELD = "yield"  # it leads a later view of the same job
    OTHER_LIFE = "other life"  # it leads another job of this name, which is further than this one


@dataclass(slots=True)
class Leadership:
    """All that only a primary needs. Orders are to be carried out one by one, while they are produced.

    Attributes:
        coordinator: None while this node does not lead.
        gone: nodes whose processes are known to have ended.
    """

    node_id: str
    coordinator: Coordinator | None = None
    gone: set[str] = field(default_factory=set)
    _peers: dict[int, str] = field(default_factory=dict)

    def begin(self, now: float, coordinator: Coordinator) -> Iterator[Order]:
        """Become the primary."""
        self.coordinator = coordinator
        for node_id in list(self.gone):
            yield from self.handle(now, primary.NodeGone(node_id))

    def handle(self, now: float, event: primary.Event) -> Iterator[Order]:
        """Let the coordinator see an event; nothing happens while this node does not lead."""
        if self.coordinator is None:
            return
        for action in self.coordinator.handle(now, event):
            match action:
                case primary.Send(node_id, message) if node_id == self.node_id:
                    yield ToSelf(message)
                case primary.Send(node_id, message):
                    yield from [ToPeer(peer, message) for peer in self._peers_of(node_id)]
                case primary.Drop(node_id):
                    yield from self._close(node_id)
                case primary.End():
                    self.coordinator = None
                case primary.Published() | primary.StepDown():
                    yield action

    # -- nodes that connected to this one ----------------------------------------------------------------------

    def said(self, now: float, peer: int, host: str, message: Message, hint: Address | None) -> Iterator[Order]:
        """Take in a message of a node. `host` is where it comes from, `hint` the address of whoever leads instead.

        Raises:
            ProtocolError: the message does not belong here; its connection should be closed.
        """
        if isinstance(message, NodeHello):
            yield from self._greeted(now, peer, host, message, hint)
        elif peer not in self._peers:
            raise ProtocolError(f"a {type(message).__name__} before any introduction")
        elif isinstance(message, Bye):
            node_id = self._peers[peer]
            yield from self._close(node_id)
            yield from self.handle(now, primary.NodeGone(node_id))
        else:
            yield from self.handle(now, primary.NodeSaid(self._peers[peer], message))

    def _greeted(self, now: float, peer: int, host: str, hello: NodeHello, hint: Address | None) -> Iterator[Order]:
        try:
            check_version(hello.version, f"node {hello.node_id}")
        except RefusedError as error:
            yield ToPeer(peer, Turned(turn=Turn.REFUSED, reason=str(error)))
            yield ClosePeer(peer)
            return
        if self.coordinator is None:
            yield ToPeer(peer, Redirect(hint=hint))
            return
        yield from self._close(hello.node_id)
        self._peers[peer] = hello.node_id
        self.gone.discard(hello.node_id)
        yield from self.handle(now, primary.NodeConnected(hello, host))

    def closed(self, peer: int) -> str | None:
        """A connection is gone; returns the node that had introduced itself on it, if one had."""
        return self._peers.pop(peer, None)

    def _peers_of(self, node_id: str) -> list[int]:
        return [peer for peer, owner in self._peers.items() if owner == node_id]

    def _close(self, node_id: str) -> list[Order]:
        peers = self._peers_of(node_id)
        for peer in peers:
            del self._peers[peer]
        return [ClosePeer(peer) for peer in peers]

    def to_all(self, message: Pulse | Bye) -> list[ToPeer]:
        """The same to every node."""
        return [ToPeer(peer, message) for peer in self._peers]

    # -- rivals ------------------------------------------------------------------------------------------------

    def compare(self, claim: Claim, own: Address) -> Rivalry:
        """Whether the primary that sent `claim` is in the right against this one, which listens at `own`."""
        if self.coordinator is None:
            return Rivalry.NONE
        ours = self.coordinator.claim(own)
        if claim.lineage and ours.lineage and claim.lineage != ours.lineage:
            theirs = (claim.epoch, claim.lineage) > (ours.epoch, ours.lineage)
            return Rivalry.OTHER_LIFE if theirs else Rivalry.NONE
        return Rivalry.YIELD if (claim.epoch, claim.node_id) > (ours.epoch, ours.node_id) else Rivalry.NONE

    def give_up(self) -> list[Order]:
        """Lead no longer, and send all nodes away to look for another primary."""
        self.coordinator = None
        peers = list(self._peers)
        self._peers.clear()
        return [ClosePeer(peer) for peer in peers]

    def claims(self, seeds: Sequence[Address], own: Address) -> list[tuple[Address, Claim]]:
        """Seeds that should be told that this node leads, and what to tell them."""
        if self.coordinator is None:
            return []
        known = self.coordinator.addresses() | {own}
        claim = self.coordinator.claim(own)
        return [(seed, claim) for seed in seeds if seed not in known]
