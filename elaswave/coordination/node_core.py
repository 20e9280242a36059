"""What a node does about everything it hears: its workers, the search for a primary, and being it. Does no I/O.

Inputs are method calls with the time; what must be done about them is left in `actions`. `node.py` carries that out
with sockets and processes, a test or a simulator with whatever it likes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from elaswave.coordination import coordinator_events as primary
from elaswave.coordination import failover
from elaswave.coordination.coordinator import Coordinator
from elaswave.coordination.coordinator_events import Policy
from elaswave.coordination.delta import apply_delta
from elaswave.coordination.failover import Failover
from elaswave.coordination.identity import Identity
from elaswave.coordination.leadership import Leadership, Order, Rivalry, ToSelf
from elaswave.coordination.node_actions import Action, CloseLink, Complain, Ended, ToPrimary, WatchNode
from elaswave.coordination.node_workers import NodeWorkers
from elaswave.coordination.protocol import (
    Address,
    Bye,
    Claim,
    Fence,
    FullView,
    Message,
    NodeHello,
    NodeWelcome,
    Pulse,
    Redirect,
    Report,
    Resend,
    Roster,
    Suspect,
    Turn,
    Turned,
    ViewDelta,
)
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import ElasWaveError, Fenced, LaunchError, RefusedError
from elaswave.topology import View


@dataclass(slots=True)
class NodeCore:
    """The brain of one node.

    Args:
        lineage: a fresh random name, used should this node form the job.
        started: when the job began, as UTC text; this node's own time until the primary has told.
        witness: see `Coordinator`.
    """

    now: float
    identity: Identity
    policy: Policy
    timeouts: Timeouts
    workers: NodeWorkers
    failover: Failover
    lineage: str
    witness: Callable[[str], bool | None]
    actions: list[Action] = field(default_factory=list)
    leading: Leadership = field(init=False)
    view: View | None = None
    roster: Roster | None = None
    started: str = ""
    index: int | None = None
    error: ElasWaveError | None = None
    _dialled: Address | None = None
    _linked: Address | None = None
    _heard_at: float = 0.0
    _beat_at: float = 0.0
    _ticked_at: float = 0.0
    _watched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.leading = Leadership(self.identity.node_id)
        self._ticked_at = self._beat_at = self.now

    @property
    def coordinator(self) -> Coordinator | None:
        """What decides for the whole job, when this node is the primary."""
        return self.leading.coordinator

    @property
    def finished(self) -> bool:
        """The last step is done, and no worker is left."""
        return self.view is not None and self.view.finished and not self.view.members

    @property
    def primary_address(self) -> Address | None:
        """Where the primary is, as far as this node knows."""
        return self._linked

    def next_deadline(self) -> float | None:
        return self.coordinator.next_deadline() if self.coordinator is not None else None

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """To be called several times per heartbeat, and after every batch of inputs."""
        if now - self._ticked_at > self.timeouts.suspicion_s / 2:
            self._slept(now)
        self._ticked_at = now
        self.workers.tick(now)
        if self._linked is not None and self.coordinator is None and now - self._heard_at > self.timeouts.suspicion_s:
            self._lose_link(now)
        if self.coordinator is not None:
            self._lead(now, primary.Tick())
        if now >= self._beat_at:
            self._beat_at = now + self.timeouts.heartbeat_s
            self._beat()
        self.settle(now)

    def _slept(self, now: float) -> None:
        """The process was held up: the silence of others is our own."""
        self._heard_at = now
        self.workers.slept(now)
        if self.coordinator is not None:
            self._lead(now, primary.Slept())

    def _beat(self) -> None:
        if self.coordinator is not None:
            self.actions += self.leading.to_all(Pulse())
        elif self._linked is not None:
            self.actions.append(ToPrimary(Pulse()))

    def settle(self, now: float) -> None:
        """Carry what changed here to the primary, and go on with the search for it."""
        self._pass_on_worker_actions(now)
        reachable = self.coordinator is not None or self._linked is not None
        if self.workers.changed and reachable and self.error is None:
            self.workers.changed = False
            self._to_primary(now, self.workers.report())
            self._pass_on_worker_actions(now)
        if self.error is None and not self.finished:
            self._search(now)

    def _pass_on_worker_actions(self, now: float) -> None:
        while self.workers.actions:
            action = self.workers.actions.pop(0)
            if isinstance(action, Complain):
                self._to_primary(now, action.suspect)
            else:
                self.actions.append(action)

    def _to_primary(self, now: float, message: Report | Suspect | Resend) -> None:
        if self.coordinator is not None:
            self._lead(now, primary.NodeSaid(self.identity.node_id, message))
        elif self._linked is not None:
            self.actions.append(ToPrimary(message))

    # -- the search --------------------------------------------------------------------------------------------

    def _search(self, now: float) -> None:
        match self.failover.tick(now):
            case failover.Dial(address):
                self._dialled = address
                self.actions.append(failover.Dial(address))
            case failover.Promote():
                self._promote(now)
            case failover.GiveUp(error):
                self._end(now, error)
            case None:
                pass

    def _promote(self, now: float) -> None:
        """Become the primary, starting from what this node knows."""
        coordinator = Coordinator(
            node_id=self.identity.node_id,
            now=now,
            policy=self.policy,
            timeouts=self.timeouts,
            witness=self.witness,
            lineage=self.lineage,
            started=self.started,
            view=self.view,
            roster=self.roster,
        )
        self.failover.settled()
        self._linked = self.failover.own
        self._carry_out(now, self.leading.begin(now, coordinator))
        self.workers.changed = False
        self._lead(now, primary.NodeConnected(self.hello(), self.failover.own[0]))
        self.settle(now)

    def hello(self) -> NodeHello:
        """How this node introduces itself."""
        return self.identity.hello(self.workers.report(), self.roster, self.view)

    def dial_connected(self, now: float) -> None:
        """The address we dialled has proved to know the secret."""
        self._heard_at = now
        self.workers.changed = False
        self.actions.append(ToPrimary(self.hello()))

    def dial_failed(self, now: float, error: ElasWaveError | OSError) -> None:
        """The address we dialled did not answer as it should."""
        address, self._dialled = self._dialled, None
        if address is None:
            return
        verdict = self.failover.failed(now, address, error)
        if verdict is not None:
            self._end(now, verdict.error)
        self.settle(now)

    def link_closed(self, now: float) -> None:
        """The connection to the primary broke."""
        if self._dialled is not None:
            self.dial_failed(now, ConnectionResetError("it closed the connection"))
        elif self._linked is not None and self.coordinator is None:
            self._linked = None
            self.failover.lost(now)
            self.settle(now)

    def _lose_link(self, now: float) -> None:
        self.actions.append(CloseLink())
        self._linked = None
        self.failover.lost(now)

    def node_gone(self, now: float, node_id: str) -> None:
        """The process of a node on this host has ended."""
        self.leading.gone.add(node_id)
        self.failover.node_gone(node_id)
        if self.coordinator is not None:
            self._lead(now, primary.NodeGone(node_id))
        elif self.roster is not None and node_id == self.roster.primary and self._linked is not None:
            self._lose_link(now)
        self.settle(now)

    # -- from the primary --------------------------------------------------------------------------------------

    def primary_said(self, now: float, message: Message) -> None:
        """Take in a message from the node that we connected to."""
        self._heard_at = now
        if isinstance(message, Redirect) and self._dialled is not None:
            address, self._dialled = self._dialled, None
            self.actions.append(CloseLink())
            self.failover.redirected(now, address, message.hint)
        elif isinstance(message, Bye):
            if self.roster is not None:
                self.leading.gone.add(self.roster.primary)
                self.failover.node_gone(self.roster.primary)
            self._lose_link(now)
        else:
            self._obey(now, message)
        self.settle(now)

    def _obey(self, now: float, message: Message) -> None:
        match message:
            case NodeWelcome(index=index):
                self.index, self.started = index, message.started
                if self.coordinator is None:
                    self._linked, self._dialled = self._dialled, None
                    self.failover.settled()
            case Roster():
                self._take_roster(message)
            case FullView(view=view):
                self._take_view(now, view, None)
            case ViewDelta():
                self._take_delta(now, message)
            case Suspect(worker_id=worker_id):
                self.workers.suspected(worker_id)
            case Fence(worker_id="", reason=reason):
                self._end(now, Fenced(reason))
            case Fence(worker_id=worker_id, reason=reason):
                self.workers.fence(now, worker_id, reason)
            case Turned(worker_id="", reason=reason):
                refused = message.turn is Turn.REFUSED
                self._end(now, RefusedError(reason) if refused else LaunchError(reason))
            case Turned():
                self.workers.turned(message)
            case _:
                pass

    def _take_roster(self, roster: Roster) -> None:
        self.roster = self.failover.roster = roster
        for entry in roster.nodes:
            same_host = entry.host_id == self.identity.host_id and entry.node_id != self.identity.node_id
            if same_host and entry.pid and entry.node_id not in self._watched:
                self._watched.add(entry.node_id)
                self.actions.append(WatchNode(entry))

    def _take_delta(self, now: float, delta: ViewDelta) -> None:
        if self.view is None or self.view.epoch != delta.base_epoch:
            if self.view is None or self.view.epoch < delta.epoch:
                self._to_primary(now, Resend())
            return
        self._take_view(now, apply_delta(self.view, delta), delta)

    def _take_view(self, now: float, view: View, delta: ViewDelta | None) -> None:
        if self.view is not None and view.epoch <= self.view.epoch:
            return
        self.view = view
        self.workers.view_arrived(now, view, delta)

    def _end(self, now: float, error: ElasWaveError) -> None:
        """Out of the job for good: no worker of this node may go on."""
        if self.error is not None:
            return
        self.error = error
        self.leading.coordinator = None
        self.failover.searching = False
        if isinstance(error, Fenced):
            self.workers.fence(now, "", str(error))
        else:
            turn = Turn.REFUSED if isinstance(error, RefusedError) else Turn.ENDED
            self.workers.turned(Turned(turn=turn, reason=str(error)))
        self._pass_on_worker_actions(now)
        self.actions.append(Ended(error))

    # -- as the primary ----------------------------------------------------------------------------------------

    def _lead(self, now: float, event: primary.Event) -> None:
        """Let the coordinator see an event, and carry out what it says."""
        self._carry_out(now, self.leading.handle(now, event))

    def _carry_out(self, now: float, orders: Iterable[Order]) -> None:
        """Do what the primary in this node wants, one by one."""
        for order in orders:
            match order:
                case ToSelf(message):
                    self._obey(now, message)
                case primary.StepDown(reason):
                    self._end(now, Fenced(reason))
                case _:
                    self.actions.append(order)
        self._pass_on_worker_actions(now)

    def peer_said(self, now: float, peer: int, host: str, message: Message) -> None:
        """Take in a message from a node that connected to us. `host` is where it comes from.

        Raises:
            ProtocolError: the message does not belong here; its connection should be closed.
        """
        if isinstance(message, Claim):
            self._claimed(now, message)
        else:
            self._carry_out(now, self.leading.said(now, peer, host, message, self._linked))
        self.settle(now)

    def peer_closed(self, now: float, peer: int) -> None:
        """A connection that somebody made to us is gone."""
        node_id = self.leading.closed(peer)
        if node_id is not None:
            self._lead(now, primary.NodeDisconnected(node_id))
            self.settle(now)

    def _claimed(self, now: float, claim: Claim) -> None:
        """Somebody else says that it leads."""
        if self.coordinator is None:
            if self._linked is None and claim.node_id != self.identity.node_id:
                self.failover.claimed(now, claim.address)
            return
        match self.leading.compare(claim, self.failover.own):
            case Rivalry.OTHER_LIFE:
                where = f"{claim.address[0]}:{claim.address[1]}"
                self._end(now, LaunchError(f"another life of this job runs already, with its primary at {where}"))
            case Rivalry.YIELD:
                self._linked = None
                self._carry_out(now, self.leading.give_up())
                self.failover.lost(now)
                self.failover.claimed(now, claim.address)
            case Rivalry.NONE:
                pass

    def claims(self) -> list[tuple[Address, Claim]]:
        """Seeds that should be told that this node leads, and what to tell them."""
        return self.leading.claims(self.failover.seeds, self.failover.own)

    def goodbye(self, now: float) -> None:
        """This node stops on purpose; its workers are at their end."""
        self.workers.fence(now, "", "its node stops")
        self._pass_on_worker_actions(now)
        if self.coordinator is not None:
            self.actions += self.leading.to_all(Bye())
        elif self._linked is not None:
            self.actions.append(ToPrimary(Bye()))
        self.leading.coordinator = None
        self.failover.searching = False
