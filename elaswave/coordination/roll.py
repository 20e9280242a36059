"""The nodes that a primary knows: who they are, how they stand, and what each has been told of the newest view."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from elaswave.coordination.detector import NodeSigns, Standing, examine_node
from elaswave.coordination.membership import NodeState
from elaswave.coordination.protocol import Address, NodeEntry, NodeHello, Report, WorkerRecord
from elaswave.coordination.timeouts import Timeouts
from elaswave.topology import Member


@dataclass(slots=True)
class Node:
    """What the primary keeps of a node."""

    entry: NodeEntry
    report: Report = field(default_factory=lambda: Report(workers=(), fates={}, evidence={}, expected_workers=0))
    heard_at: float = 0.0
    disconnected_at: float | None = None
    patience_s: float = 0.0
    gone: bool = False
    sent_epoch: int = -1

    @property
    def connected(self) -> bool:
        return self.disconnected_at is None and not self.gone


@dataclass(slots=True)
class Roll:
    """All nodes of the job, dead ones until no member is on them.

    Args:
        own_id: node that the primary runs in; as long as it is connected it is alive.

    Attributes:
        nodes: by node id.
        standings: of each, as of the last `look`.
    """

    own_id: str
    timeouts: Timeouts
    nodes: dict[str, Node] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)

    # -- what happens to nodes ---------------------------------------------------------------------------------

    def await_node(self, now: float, entry: NodeEntry) -> None:
        """Wait for a node of the primary before this one."""
        if entry.node_id not in self.nodes:
            self.nodes[entry.node_id] = Node(
                entry=entry, heard_at=now, disconnected_at=now, patience_s=self.timeouts.takeover_s
            )

    def await_member(self, now: float, member: Member) -> None:
        """Wait for the node of a member, of which nothing else is known."""
        entry = NodeEntry(
            node_id=member.node_id,
            host_id=member.host_id,
            pid=0,
            started_ticks=0,
            address=("", 0),
            index=len(self.nodes),
        )
        self.await_node(now, entry)

    def greeted(self, now: float, hello: NodeHello, host: str) -> NodeEntry:
        """Take in a node that introduced itself, for the first time or again. `host` is where it comes from."""
        known = self.nodes.get(hello.node_id)
        entry = NodeEntry(
            node_id=hello.node_id,
            host_id=hello.host_id,
            pid=hello.pid,
            started_ticks=hello.started_ticks,
            address=(hello.host or host, hello.port),
            index=known.entry.index if known else self._free_index(),
        )
        node = known or Node(entry=entry)
        node.entry, node.report, node.heard_at = entry, hello.report, now
        node.disconnected_at, node.gone = None, False
        node.sent_epoch = hello.view.epoch if hello.view else -1
        self.nodes[hello.node_id] = node
        return entry

    def _free_index(self) -> int:
        taken = {node.entry.index for node in self.nodes.values()}
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def heard(self, now: float, node_id: str) -> Node | None:
        """Note a sign of life; returns the node, None when there is none, or it counts as gone."""
        node = self.nodes.get(node_id)
        if node is None or not node.connected:
            return None
        node.heard_at = now
        return node

    def disconnected(self, now: float, node_id: str) -> None:
        """The connection of a node broke; it may come back."""
        node = self.nodes.get(node_id)
        if node is not None and node.disconnected_at is None:
            node.disconnected_at, node.patience_s = now, self.timeouts.reconnect_s

    def gone(self, node_id: str) -> None:
        """The process of a node has ended."""
        if node_id in self.nodes:
            self.nodes[node_id].gone = True

    def slept(self, now: float) -> None:
        """Nobody's silence up to now means anything."""
        for node in self.nodes.values():
            node.heard_at = now
            if node.disconnected_at is not None:
                node.disconnected_at = now

    def forget(self, held: set[str]) -> list[str]:
        """Take out the nodes that are out and not in `held`; returns those of them that are still connected."""
        connected = []
        for node_id, standing in self.standings.items():
            if standing in (Standing.GONE, Standing.UNKNOWN) and node_id not in held:
                if self.nodes[node_id].disconnected_at is None:
                    connected.append(node_id)
                del self.nodes[node_id]
        return connected

    # -- how they stand ----------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Judge every node anew."""
        self.standings = {node_id: self._standing(now, node_id, node) for node_id, node in self.nodes.items()}

    def changed(self, now: float) -> bool:
        """Whether `look` would find something new."""
        return any(self._standing(now, n, node) is not self.standings.get(n) for n, node in self.nodes.items())

    def _standing(self, now: float, node_id: str, node: Node) -> Standing:
        if node_id == self.own_id and node.connected:
            return Standing.LIVE
        signs = NodeSigns(
            gone=node.gone,
            disconnected_s=None if node.disconnected_at is None else now - node.disconnected_at,
            patience_s=node.patience_s,
            silence_s=now - node.heard_at,
        )
        return examine_node(signs, self.timeouts)

    # -- what others ask ---------------------------------------------------------------------------------------

    @property
    def own_index(self) -> int:
        """Position of the primary's own node, 0 when it is not known yet."""
        own = self.nodes.get(self.own_id)
        return 0 if own is None else own.entry.index

    def live(self) -> list[tuple[str, Node]]:
        return [(n, self.nodes[n]) for n, standing in self.standings.items() if standing is Standing.LIVE]

    def connected(self) -> list[tuple[str, Node]]:
        return [(node_id, node) for node_id, node in self.nodes.items() if node.connected]

    def awaited(self) -> bool:
        """Whether any node may still come back."""
        return any(standing is Standing.PENDING for standing in self.standings.values())

    def entries(self) -> tuple[NodeEntry, ...]:
        return tuple(sorted((node.entry for node in self.nodes.values()), key=lambda entry: entry.index))

    def addresses(self) -> set[Address]:
        return {node.entry.address for node in self.nodes.values()}

    def workers(self, *, of_connected: bool = False) -> list[tuple[str, WorkerRecord]]:
        """What all nodes, or only the connected ones, report: each worker with its node's id."""
        nodes = self.connected() if of_connected else self.nodes.items()
        return [(node_id, worker) for node_id, node in nodes for worker in node.report.workers]

    def states(self, turned: Iterable[str]) -> dict[str, NodeState]:
        """The nodes as the membership decision sees them, without the workers that were turned away."""
        out = set(turned)
        return {
            node_id: NodeState(
                node_id=node_id,
                host_id=node.entry.host_id,
                index=node.entry.index,
                standing=self.standings[node_id],
                expected_workers=node.report.expected_workers,
                workers=tuple(w for w in node.report.workers if w.worker_id not in out),
                fates=node.report.fates,
                evidence=node.report.evidence,
            )
            for node_id, node in self.nodes.items()
        }
