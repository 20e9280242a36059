"""Nodes of the control plane in a world of its own: virtual time, an in-memory network, workers that are only names."""

import heapq
import itertools
from collections import defaultdict, deque
from dataclasses import dataclass, field

from elaswave.coordination.coordinator_events import Policy, Published
from elaswave.coordination.detector import Evidence
from elaswave.coordination.failover import Dial, Failover
from elaswave.coordination.identity import Identity
from elaswave.coordination.node_actions import CloseLink, ClosePeer, Ended, Kill, ToPeer, ToPrimary, ToWorker, WatchNode
from elaswave.coordination.node_core import NodeCore
from elaswave.coordination.node_workers import NodeWorkers
from elaswave.coordination.protocol import (
    VERSION,
    Depart,
    Fence,
    Finish,
    Join,
    Pulse,
    Turned,
    WorkerHello,
)
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.wire import pack, unpack
from elaswave.errors import ProtocolError

TICK_S = 0.02
LATENCY_S = 0.001
PORT = 7000


@dataclass
class Connection:
    """Two ends: `node` dialled `other`."""

    key: int
    node: str
    other: str
    open: bool = True
    waiting: dict = field(default_factory=lambda: defaultdict(deque))


@dataclass
class Worker:
    """A name that sends heartbeats unless it is hung or dead."""

    worker_id: str
    node: str
    pid: int
    hung: bool = False
    dead: bool = False
    messages: list = field(default_factory=list)

    def saw(self, kind):
        return [m for m in self.messages if isinstance(m, kind)]


@dataclass
class World:
    """All nodes, all connections, one clock.

    Args:
        witness: name -> True, False or None; by default the first to ask gets it.
    """

    timeouts: Timeouts = field(default_factory=lambda: Timeouts(suspicion_s=1.0, heartbeat_s=0.2, grace_s=0.4))
    policy: Policy = field(default_factory=Policy)
    seeds: int = 1
    shared_storage: bool = True
    now: float = 100.0
    cores: dict = field(default_factory=dict)
    workers: dict = field(default_factory=dict)
    published: list = field(default_factory=list)
    ended: dict = field(default_factory=dict)
    _hosts: dict = field(default_factory=dict)
    _links: dict = field(default_factory=dict)
    _connections: dict = field(default_factory=dict)
    _watched: dict = field(default_factory=dict)
    _asleep: set = field(default_factory=set)
    _cut: set = field(default_factory=set)
    _taken: set = field(default_factory=set)
    _queue: list = field(default_factory=list)
    _count: itertools.count = field(default_factory=itertools.count)
    _names: int = 0

    # -- building ----------------------------------------------------------------------------------------------

    def _id(self):
        self._names += 1
        return f"{self._names:012x}"

    def node(self, workers=2, host=None, spares=0):
        """Add a node; its workers join at once."""
        name = self._id()
        port = PORT + len(self._hosts)
        seeds = tuple(("h", PORT + i) for i in range(self.seeds))
        own = ("h", port)
        self._hosts[name] = host or name
        self.cores[name] = NodeCore(
            now=self.now,
            identity=Identity(node_id=name, host_id=self._hosts[name], pid=port, started_ticks=1, host="h", port=port),
            policy=self.policy,
            timeouts=self.timeouts,
            workers=NodeWorkers(
                expected_workers=workers, timeouts=self.timeouts, is_stopped=lambda pid: self._is_stopped(pid)
            ),
            failover=Failover(
                now=self.now,
                node_id=name,
                own=own,
                seeds=seeds,
                seed_index=seeds.index(own) if own in seeds else None,
                timeouts=self.timeouts,
            ),
            lineage=self._id(),
            witness=self.witness,
        )
        for i in range(workers):
            self.worker(name, i)
        for _ in range(spares):
            self.worker(name, None, spare=True)
        return name

    def worker(self, node, local_rank, *, spare=False, digest="c", torch="2.13"):
        worker_id = self._id()
        worker = self.workers[worker_id] = Worker(worker_id, node, 10_000 + self._names)
        core = self.cores[node]
        hello = WorkerHello(version=VERSION, worker_id=worker_id, local_rank=local_rank, spare=spare)
        assert core.workers.connected(self.now, hello, worker.pid) is None
        core.workers.said(
            self.now, worker_id, Join(address={"at": worker_id}, config_digest=digest, versions={"torch": torch})
        )
        core.settle(self.now)
        self._carry_out(node)
        return worker_id

    def witness(self, name):
        if not self.shared_storage:
            return None
        if name in self._taken:
            return False
        self._taken.add(name)
        return True

    def _is_stopped(self, pid):
        return any(w.pid == pid and w.hung for w in self.workers.values())

    # -- hurting -----------------------------------------------------------------------------------------------

    def kill(self, worker_id, evidence=Evidence.MUTEX):
        worker = self.workers[worker_id]
        if worker.dead:
            return
        worker.dead = True
        core = self.cores.get(worker.node)
        if core is not None:
            core.workers.sign(self.now, worker_id, evidence)
            core.settle(self.now)
            self._carry_out(worker.node)

    def hang(self, worker_id):
        self.workers[worker_id].hung = True

    def say(self, worker_id, message):
        worker = self.workers[worker_id]
        core = self.cores[worker.node]
        core.workers.said(self.now, worker_id, message)
        core.settle(self.now)
        self._carry_out(worker.node)

    def depart(self, worker_id):
        self.say(worker_id, Depart())

    def finish(self, worker_id):
        self.say(worker_id, Finish())

    def kill_node(self, name):
        """SIGKILL of the agent; its workers die with it."""
        del self.cores[name]
        for worker in self.workers.values():
            if worker.node == name:
                worker.dead = True
        for connection in list(self._connections.values()):
            if name in (connection.node, connection.other):
                self._disconnect(connection)
        for watcher, target in [pair for pair in self._watched if pair[1] == name]:
            self._later(LATENCY_S, lambda w=watcher, t=target: self._node_gone(w, t))

    def _node_gone(self, watcher, target):
        if watcher in self._asleep:
            self._later(TICK_S, lambda: self._node_gone(watcher, target))
        elif watcher in self.cores:
            self.cores[watcher].node_gone(self.now, target)
            self._carry_out(watcher)

    def partition(self, *sides):
        """Nodes of different sides do not hear each other any more."""
        self._cut = {(a, b) for one in sides for other in sides if one is not other for a in one for b in other}

    def heal(self):
        self._cut = set()

    def sleep(self, name):
        """SIGSTOP of the agent: it does nothing until it wakes."""
        self._asleep.add(name)

    def awake(self, name):
        self._asleep.discard(name)

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def primaries(self):
        return [name for name, core in self.cores.items() if core.coordinator is not None]

    def view(self, name):
        return self.cores[name].view

    def ids(self, name):
        """Worker ids of a node that are alive."""
        return [w.worker_id for w in self.workers.values() if w.node == name and not w.dead]

    # -- time --------------------------------------------------------------------------------------------------

    def _later(self, delay_s, act):
        heapq.heappush(self._queue, (self.now + delay_s, next(self._count), act))

    def run(self, duration_s):
        """Let time pass."""
        end = self.now + duration_s
        while self.now < end:
            step_end = min(end, self.now + TICK_S)
            while self._queue and self._queue[0][0] <= step_end:
                at, _, act = heapq.heappop(self._queue)
                self.now = max(self.now, at)
                act()
                self._tick_due()
            self.now = step_end
            self._tick_all()

    def run_until(self, reached, limit_s=30.0):
        """Let time pass until something holds; returns how long that took, in virtual seconds."""
        start = self.now
        while not reached():
            assert self.now - start < limit_s, f"not reached within {limit_s} virtual seconds"
            self.run(TICK_S / 4)
        return self.now - start

    def _tick_due(self):
        for name, core in list(self.cores.items()):
            due = core.next_deadline()
            if due is not None and due <= self.now and name not in self._asleep:
                self._tick(name)

    def _tick_all(self):
        for worker in self.workers.values():
            if not worker.dead and not worker.hung and worker.node in self.cores and worker.node not in self._asleep:
                self.cores[worker.node].workers.said(self.now, worker.worker_id, Pulse())
        for name in list(self.cores):
            if name not in self._asleep:
                self._tick(name)

    def _tick(self, name):
        core = self.cores[name]
        core.tick(self.now)
        for seed, claim in core.claims():
            other = self._at(seed)
            if other is not None and other not in self._asleep and (name, other) not in self._cut and other != name:
                self.cores[other].peer_said(self.now, -1, "h", claim)
                self._carry_out(other)
        self._carry_out(name)

    # -- the network -------------------------------------------------------------------------------------------

    def _at(self, address):
        return next((n for n, core in self.cores.items() if core.failover.own == address), None)

    def _carry_out(self, name):
        core = self.cores.get(name)
        while core is not None and core.actions:
            self._do(name, core.actions.pop(0))

    def _do(self, name, action):
        match action:
            case ToWorker(worker_id, message):
                self._tell_worker(worker_id, message)
            case Kill(worker_id=worker_id) if worker_id:
                self.workers[worker_id].dead = True
                self._later(LATENCY_S, lambda: self._exited(name, worker_id))
            case Dial(address):
                self._dial(name, address)
            case ToPrimary(message):
                self._to_primary(name, message)
            case CloseLink():
                connection = self._links.pop(name, None)
                if connection is not None:
                    self._disconnect(connection, by=name)
            case ToPeer(peer, message):
                self._to_peer(name, peer, message)
            case ClosePeer(peer):
                if peer in self._connections:
                    self._disconnect(self._connections[peer], by=name)
            case WatchNode(entry):
                self._watched[name, entry.node_id] = True
            case Published(view):
                self.published.append((name, view))
            case Ended(error):
                self.ended[name] = error
            case _:
                pass

    def _exited(self, name, worker_id):
        if name in self.cores:
            self.cores[name].workers.sign(self.now, worker_id, Evidence.EXIT)
            self.cores[name].settle(self.now)
            self._carry_out(name)

    def _tell_worker(self, worker_id, message):
        worker = self.workers[worker_id]
        worker.messages.append(unpack(pack(message)[4:]))
        if isinstance(message, Fence | Turned) and not worker.hung:
            worker.dead = True
            self._later(LATENCY_S, lambda: self._exited(worker.node, worker_id))

    def _dial(self, name, address):
        other = self._at(address)
        if other is None:
            self._later(LATENCY_S, lambda: self._dial_failed(name, ConnectionRefusedError("refused")))
        elif (name, other) in self._cut or other in self._asleep:
            self._later(0.5, lambda: self._dial_failed(name, TimeoutError("timed out")))
        else:
            connection = Connection(next(self._count), name, other)
            self._links[name] = self._connections[connection.key] = connection
            self._later(LATENCY_S, lambda: self._dial_connected(connection))

    def _dial_failed(self, name, error):
        if name in self.cores:
            self.cores[name].dial_failed(self.now, error)
            self._carry_out(name)

    def _dial_connected(self, connection):
        if connection.open and connection.node in self.cores:
            self.cores[connection.node].dial_connected(self.now)
            self._carry_out(connection.node)

    def _to_primary(self, name, message):
        connection = self._links.get(name)
        if connection is not None:
            self._deliver(connection, name, connection.other, message)

    def _to_peer(self, name, peer, message):
        connection = self._connections.get(peer)
        if connection is not None:
            self._deliver(connection, name, connection.node, message)

    def _blocked(self, one, other):
        return (one, other) in self._cut or other in self._asleep

    def _deliver(self, connection, sender, receiver, message):
        """Every message goes through the wire format. Like TCP, a cut holds messages up and keeps their order."""
        connection.waiting[receiver].append(unpack(pack(message)[4:]))
        self._later(LATENCY_S, lambda: self._arrive(connection, sender, receiver))

    def _arrive(self, connection, sender, receiver):
        waiting = connection.waiting[receiver]
        if not connection.open or receiver not in self.cores or not waiting:
            return
        if self._blocked(sender, receiver):
            self._later(TICK_S, lambda: self._arrive(connection, sender, receiver))
            return
        core, message = self.cores[receiver], waiting.popleft()
        if receiver == connection.other:
            try:
                core.peer_said(self.now, connection.key, "h", message)
            except ProtocolError:
                self._disconnect(connection, by=receiver)
                core.peer_closed(self.now, connection.key)
        else:
            core.primary_said(self.now, message)
        self._carry_out(receiver)

    def _disconnect(self, connection, by=""):
        """Close a connection; what was sent before arrives first, and a cut keeps the other side from noticing."""
        self._later(LATENCY_S, lambda: self._close(connection, by))

    def _close(self, connection, by):
        if not connection.open:
            return
        for end, other in ((connection.node, connection.other), (connection.other, connection.node)):
            while connection.waiting[end] and end in self.cores and not self._blocked(other, end):
                self._arrive(connection, other, end)
        if not connection.open:
            return
        connection.open = False
        del self._connections[connection.key]
        for end, other in ((connection.node, connection.other), (connection.other, connection.node)):
            if end != by:
                self._notice_close(connection, end, other)
            elif self._links.get(end) is connection:
                del self._links[end]

    def _notice_close(self, connection, end, other):
        if end not in self.cores:
            return
        if self._blocked(other, end):
            self._later(TICK_S, lambda: self._notice_close(connection, end, other))
            return
        if end == connection.other:
            self.cores[end].peer_closed(self.now, connection.key)
        elif self._links.get(end) is connection:
            del self._links[end]
            self.cores[end].link_closed(self.now)
        self._carry_out(end)
