"""The loop of a node's service: waits for whatever happens, lets the core decide, and carries that out."""

import socket
from collections.abc import Callable

from elaswave.clock import Clock
from elaswave.coordination.coordinator_events import Published
from elaswave.coordination.failover import Dial
from elaswave.coordination.node_actions import (
    Action,
    CloseLink,
    ClosePeer,
    Died,
    Ended,
    Kill,
    SpareReady,
    SpareUsed,
    ToPeer,
    ToPrimary,
    ToWorker,
    WatchNode,
)
from elaswave.coordination.node_core import NodeCore
from elaswave.coordination.node_door import NodeDoor
from elaswave.coordination.reactor import Reactor
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.worker_door import WorkerDoor
from elaswave.events import Kind, Recorder

TICKS_PER_HEARTBEAT = 4


class NodeIO:
    """Sockets and processes of one node.

    Args:
        core: decides.
        listener: where other nodes connect; owned by this object.

    Attributes:
        worker_address: where workers connect.
    """

    def __init__(
        self,
        *,
        core: NodeCore,
        listener: socket.socket,
        secret: bytes,
        timeouts: Timeouts,
        recorder: Recorder,
        on_kill: Callable[[int], None] | None,
        clock: Clock,
    ) -> None:
        self.core = core
        self._recorder, self._clock = recorder, clock
        self._tick_s = timeouts.heartbeat_s / TICKS_PER_HEARTBEAT
        self._tick_at = 0.0
        self._reactor = Reactor()
        self._nodes = NodeDoor(
            core=core,
            listener=listener,
            reactor=self._reactor,
            secret=secret,
            timeouts=timeouts,
            recorder=recorder,
            clock=clock,
        )
        self._workers = WorkerDoor(
            core=core,
            reactor=self._reactor,
            secret=secret,
            timeouts=timeouts,
            recorder=recorder,
            on_kill=on_kill,
            clock=clock,
        )
        self.worker_address = self._workers.address

    def wake(self) -> None:
        """End the current wait; from any thread."""
        self._reactor.wake()

    def run_once(self) -> None:
        """Wait for something to happen, at most until something is due, and take it in."""
        self._reactor.poll(max(0.0, self._due() - self._clock.monotonic()))
        now = self._clock.monotonic()
        if now >= self._due():
            self._tick_at = now + self._tick_s
            self._workers.close_strangers(now)
            self._nodes.tick(now)
            self.core.tick(now)
        self.carry_out()

    def _due(self) -> float:
        due = self.core.next_deadline()
        return self._tick_at if due is None else min(due, self._tick_at)

    def close(self) -> None:
        """Say goodbye and close everything."""
        self.core.goodbye(self._clock.monotonic())
        self.carry_out()
        self._workers.close()
        self._nodes.close()
        self._reactor.close()

    # -- what the core wants -----------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do everything the core has decided."""
        while self.core.actions:
            self._do(self.core.actions.pop(0))

    def _do(self, action: Action) -> None:
        match action:
            case ToWorker(worker_id, message):
                self._workers.tell(worker_id, message)
            case ToPeer(key, message):
                self._nodes.tell_peer(key, message)
            case ClosePeer(key):
                self._nodes.close_peer(key)
            case ToPrimary(message):
                self._nodes.tell_primary(message)
            case CloseLink():
                self._nodes.drop_link()
            case Dial(address):
                self._nodes.dial(address)
            case WatchNode(entry):
                self._nodes.watch_node(entry)
            case Kill(worker_id, pid):
                self._workers.kill(worker_id, pid)
            case _:
                self._record(action)

    def _record(self, action: Action) -> None:
        emit = self._recorder.emit
        match action:
            case Died(worker_id, rank, pid, evidence):
                emit(Kind.DEATH, worker_id=worker_id, rank=rank, pid=pid, evidence=evidence)
            case SpareReady(worker_id, pid):
                emit(Kind.SPARE, what="ready", pid=pid, worker_id=worker_id)
            case SpareUsed(worker_id, pid, local_rank):
                emit(Kind.SPARE, what="activated", pid=pid, worker_id=worker_id, local_rank=local_rank)
            case Published(view):
                members = [[m.rank, m.worker_id, m.pid] for m in view.members]
                emit(Kind.VIEW, epoch=view.epoch, members=members, reason=view.reason, paused=view.paused)
            case Ended(error):
                emit(Kind.ERROR, message=str(error))
            case _:
                pass
