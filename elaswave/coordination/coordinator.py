"""The primary: turns what nodes report into views, without sockets, threads or a clock of its own.

`handle(now, event)` returns the actions to carry out, so that the job and a simulator run the same code. All of its
state is soft: a standby that takes over rebuilds it from the newest view, the roster and the nodes' hellos.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from elaswave.coordination import membership
from elaswave.coordination.compatibility import mismatch
from elaswave.coordination.coordinator_events import (
    Action,
    Drop,
    End,
    Event,
    NodeConnected,
    NodeDisconnected,
    NodeGone,
    NodeSaid,
    Policy,
    Published,
    Send,
    Slept,
    StepDown,
    Tick,
)
from elaswave.coordination.delta import delta_between
from elaswave.coordination.detector import NodeSigns, Standing, examine_node
from elaswave.coordination.membership import NodeState, State
from elaswave.coordination.protocol import (
    Address,
    Claim,
    Fence,
    FullView,
    Message,
    NodeEntry,
    NodeHello,
    NodeWelcome,
    Pulse,
    Report,
    Resend,
    Roster,
    Suspect,
    Turn,
    Turned,
    WorkerRecord,
)
from elaswave.coordination.timeouts import Timeouts
from elaswave.topology import View

EPOCH_LEAP = 16
"""A new primary skips this many epochs, times its place among the nodes: the lost one, or another that took over and
was lost, may have published some that nobody here has seen."""


@dataclass(slots=True)
class _Node:
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
class Coordinator:
    """The primary's state machine.

    Args:
        node_id: node that it runs in.
        lineage: name of the job's life, made up by the caller; kept from `roster` when there is one.
        witness: takes the witness file of that name; True: taken, False: somebody else has it, None: there is no
            place for witness files.
        view, roster: what a standby that takes over knows; None in a new job.
        started: when the job began, as UTC text; told to every node.
    """

    node_id: str
    now: float
    policy: Policy
    timeouts: Timeouts
    witness: Callable[[str], bool | None]
    lineage: str
    view: View | None = None
    roster: Roster | None = None
    started: str = ""
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _takeover_until: float | None = None
    _last_epoch: int = 0
    _term: int = 0
    _claims: int = 0
    _vacancies: tuple[membership.Vacancy, ...] = ()
    _loss_due: float | None = None
    _join_due: float | None = None
    _waiting_since: float | None = None
    _reference: WorkerRecord | None = None
    _checked: set[str] = field(default_factory=set)
    _turned: set[str] = field(default_factory=set)
    _roster_sent: Roster | None = None
    _ended: bool = False
    _standings: dict[str, Standing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting_since = self.now
        if self.roster is not None:
            self._adopt_roster(self.now, self.roster)
        if self.view is not None:
            view, self.view = self.view, None
            self._adopt_view(self.now, view)

    # -- taking over -------------------------------------------------------------------------------------------

    def _adopt_roster(self, now: float, roster: Roster) -> None:
        """Go on where another primary stopped: its nodes are waited for."""
        self.lineage, self._term = roster.lineage, max(self._term, roster.term + 1)
        self._claims, self._vacancies = max(self._claims, roster.claims), roster.vacancies
        for entry in roster.nodes:
            self._await_node(now, entry)

    def _await_node(self, now: float, entry: NodeEntry) -> None:
        if entry.node_id not in self._nodes:
            self._nodes[entry.node_id] = _Node(
                entry=entry, heard_at=now, disconnected_at=now, patience_s=self.timeouts.takeover_s
            )

    def _adopt_view(self, now: float, view: View) -> None:
        """Start from `view` when it is newer than what is known here."""
        if self.view is not None and view.epoch <= self.view.epoch:
            return
        self.view = view
        own = self._nodes.get(self.node_id)
        leap = EPOCH_LEAP * (1 + (own.entry.index if own is not None else 0))
        self._last_epoch = max(self._last_epoch, view.epoch + leap - 1)
        self._term = max(self._term, view.term + 1)
        self._takeover_until = now + self.timeouts.takeover_s
        self._waiting_since = now if view.paused else None
        for member in view.members:
            self._await_node(
                now,
                NodeEntry(
                    node_id=member.node_id,
                    host_id=member.host_id,
                    pid=0,
                    started_ticks=0,
                    address=("", 0),
                    index=len(self._nodes),
                ),
            )

    # -- events ------------------------------------------------------------------------------------------------

    def handle(self, now: float, event: Event) -> list[Action]:
        """Take in one event and return what must be done about it, in order."""
        out: list[Action] = []
        if self._ended:
            return out
        match event:
            case NodeConnected(hello, host):
                self._on_hello(now, hello, host, out)
            case NodeSaid(node_id, Pulse()):
                if node_id in self._nodes:
                    self._nodes[node_id].heard_at = now
                return out
            case NodeSaid(node_id, message):
                self._on_message(now, node_id, message, out)
            case NodeDisconnected(node_id):
                self._on_disconnected(now, node_id)
            case NodeGone(node_id):
                if node_id in self._nodes:
                    self._nodes[node_id].gone = True
            case Slept():
                for node in self._nodes.values():
                    node.heard_at = now
                    if node.disconnected_at is not None:
                        node.disconnected_at = now
            case Tick():
                if not self._standings_changed(now) and self._idle:
                    return out
        self._settle(now, out)
        return out

    @property
    def _idle(self) -> bool:
        """Nothing is due that only needs time to pass."""
        dues = (self._takeover_until, self._loss_due, self._join_due, self._waiting_since)
        return all(due is None for due in dues)

    def _standings_changed(self, now: float) -> bool:
        return any(self._standing(now, n, node) is not self._standings.get(n) for n, node in self._nodes.items())

    def next_deadline(self) -> float | None:
        """When the next view is due, if one is; leases need no more than a regular Tick."""
        dues = [due for due in (self._loss_due, self._join_due) if due is not None]
        return min(dues, default=None)

    def claim(self, address: Address) -> Claim:
        """What to tell seeds about this primary."""
        return Claim(
            node_id=self.node_id,
            address=address,
            lineage=self.lineage if self.view else "",
            epoch=self.view.epoch if self.view else 0,
        )

    def addresses(self) -> set[Address]:
        """Where the job's own nodes listen."""
        return {node.entry.address for node in self._nodes.values()}

    def _on_hello(self, now: float, hello: NodeHello, host: str, out: list[Action]) -> None:
        if hello.roster is not None and self._foreign(hello.roster):
            reason = (
                f"node {hello.node_id} belongs to another life of this job; stop it, or give one of the two another "
                "--rdzv-id"
            )
            out += [Send(hello.node_id, Turned(turn=Turn.REFUSED, reason=reason)), Drop(hello.node_id)]
            return
        if hello.roster is not None and self.view is None:
            self._adopt_roster(now, hello.roster)
        if hello.view is not None:
            self._adopt_view(now, hello.view)
        known = self._nodes.get(hello.node_id)
        index = known.entry.index if known else self._free_index()
        entry = NodeEntry(
            node_id=hello.node_id,
            host_id=hello.host_id,
            pid=hello.pid,
            started_ticks=hello.started_ticks,
            address=(hello.host or host, hello.port),
            index=index,
        )
        node = known or _Node(entry=entry)
        node.entry, node.report, node.heard_at = entry, hello.report, now
        node.disconnected_at, node.gone = None, False
        node.sent_epoch = hello.view.epoch if hello.view else -1
        self._nodes[hello.node_id] = node
        out.append(Send(hello.node_id, NodeWelcome(node_id=self.node_id, index=index, started=self.started)))
        if self._roster_sent is not None:
            out.append(Send(hello.node_id, self._roster_sent))

    def _foreign(self, roster: Roster) -> bool:
        return self.view is not None and roster.lineage != self.lineage

    def _free_index(self) -> int:
        taken = {node.entry.index for node in self._nodes.values()}
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def _bring_up_to_date(self, node: _Node, out: list[Action]) -> None:
        if self.view is not None and node.connected and node.sent_epoch != self.view.epoch:
            node.sent_epoch = self.view.epoch
            out.append(Send(node.entry.node_id, FullView(view=self.view)))

    def _on_message(self, now: float, node_id: str, message: Message, out: list[Action]) -> None:
        node = self._nodes.get(node_id)
        if node is None or not node.connected:
            return
        node.heard_at = now
        match message:
            case Report():
                node.report = message
            case Resend():
                node.sent_epoch = -1
            case Suspect(worker_id=worker_id):
                self._forward_suspicion(worker_id, message, out)
            case _:
                pass

    def _forward_suspicion(self, worker_id: str, message: Suspect, out: list[Action]) -> None:
        """A node alone can look at the processes of its workers."""
        member = self.view.member(worker_id) if self.view else None
        node = self._nodes.get(member.node_id) if member else None
        if node is not None and node.connected:
            out.append(Send(node.entry.node_id, message))

    def _on_disconnected(self, now: float, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is not None and node.disconnected_at is None:
            node.disconnected_at, node.patience_s = now, self.timeouts.reconnect_s

    def _check_newcomers(self, out: list[Action]) -> None:
        """Turn away workers that were started with something else than the members, or else the first one, were."""
        reported = [(node_id, w) for node_id, node in self._nodes.items() for w in node.report.workers]
        if self._reference is None:
            ordered = sorted((w for _, w in reported), key=lambda w: not w.member)
            self._reference = ordered[0] if ordered else None
        for node_id, worker in reported:
            if worker.member or worker.worker_id in self._checked or self._reference is None:
                continue
            self._checked.add(worker.worker_id)
            reason = mismatch(self._reference, worker)
            if reason is not None:
                self._turned.add(worker.worker_id)
                out.append(Send(node_id, Turned(turn=Turn.REFUSED, reason=reason, worker_id=worker.worker_id)))

    # -- decisions ---------------------------------------------------------------------------------------------

    def _settle(self, now: float, out: list[Action]) -> None:
        """Look at the whole state and do what it asks for."""
        self._standings = {node_id: self._standing(now, node_id, node) for node_id, node in self._nodes.items()}
        if self._takeover_until is not None and not self._taken_over(now):
            return
        self._check_newcomers(out)
        state = self._state()
        self._note_changes(now, state)
        view, reason = membership.view_compute(now, self._with_dues(state))
        if view is not None and not self._publish(now, state, view, out):
            return
        self._check_wait(now, reason, out)
        self._forget_nodes(out)
        self._send_roster(out)
        for node in self._nodes.values():
            self._bring_up_to_date(node, out)
        self._turn_away(out)

    def _standing(self, now: float, node_id: str, node: _Node) -> Standing:
        if node_id == self.node_id and node.connected:
            return Standing.LIVE
        signs = NodeSigns(
            gone=node.gone,
            disconnected_s=None if node.disconnected_at is None else now - node.disconnected_at,
            patience_s=node.patience_s,
            silence_s=now - node.heard_at,
        )
        return examine_node(signs, self.timeouts)

    def _taken_over(self, now: float) -> bool:
        """True once every node has come or is known to be dead, or the others were waited for long enough."""
        awaited = any(s is Standing.PENDING for s in self._standings.values())
        if awaited and self._takeover_until is not None and now < self._takeover_until:
            return False
        self._takeover_until = None
        return True

    def _state(self) -> State:
        nodes = {
            node_id: NodeState(
                node_id=node_id,
                host_id=node.entry.host_id,
                index=node.entry.index,
                standing=self._standings[node_id],
                expected_workers=node.report.expected_workers,
                workers=tuple(w for w in node.report.workers if w.worker_id not in self._turned),
                fates=node.report.fates,
                evidence=node.report.evidence,
            )
            for node_id, node in self._nodes.items()
        }
        return State(
            view=self.view,
            nodes=nodes,
            vacancies=self._vacancies,
            min_nodes=self.policy.min_nodes,
            min_workers=self.policy.min_workers,
            next_epoch=self._last_epoch + 1,
            term=self._term,
        )

    def _note_changes(self, now: float, state: State) -> None:
        """Start the short waits in which changes gather for one view."""
        found = membership.changes(state)
        if not found.lost:
            self._loss_due = None
        elif self._loss_due is None:
            self._loss_due = now + self.timeouts.loss_coalesce_s
        if not found.any:
            self._join_due = None
        elif self._join_due is None:
            self._join_due = now + self.timeouts.join_coalesce_s

    def _with_dues(self, state: State) -> State:
        return replace(state, loss_due=self._loss_due or 0.0, join_due=self._join_due or 0.0)

    def _publish(self, now: float, state: State, view: View, out: list[Action]) -> bool:
        """Send the view to every node; False when the quorum forbids it."""
        old = self.view
        if old is not None:
            refusal = self._refusal(state)
            if refusal is not None:
                self._step_down(refusal, out)
                return False
            staying = [m for m in old.members if view.rank_of(m.worker_id) == m.rank]
            filled = set(view.ranks())
            self._vacancies = tuple(v for v in membership.vacancies_after(state, staying) if v.rank not in filled)
        else:
            self.witness(f"{self.lineage}-0")  # shows later whether two sides see the same storage
        self.view, self._last_epoch = view, view.epoch
        self._loss_due = self._join_due = None
        self._waiting_since = (self._waiting_since or now) if view.paused else None
        self._send_roster(out)
        delta = delta_between(old, view) if old is not None else None
        for node_id, node in self._nodes.items():
            if self._standings[node_id] is not Standing.LIVE:
                continue
            fits = delta is not None and node.sent_epoch == delta.base_epoch
            out.append(Send(node_id, delta if delta is not None and fits else FullView(view=view)))
            node.sent_epoch = view.epoch
        out.append(Published(view))
        return True

    def _refusal(self, state: State) -> str | None:
        """Why this primary may not publish a view without the members whose fate is unknown; None when it may."""
        verdict = membership.decide_split(
            membership.changes(state), lambda: self.witness(f"{self.lineage}-{self._claims + 1}")
        )
        self._claims += verdict.took_witness
        return verdict.refusal

    def _step_down(self, reason: str, out: list[Action]) -> None:
        self._ended = True
        for node_id, standing in self._standings.items():
            if standing is Standing.LIVE:
                out.append(Send(node_id, Fence(worker_id="", reason=reason)))
        out.append(StepDown(reason))

    def _check_wait(self, now: float, reason: str, out: list[Action]) -> None:
        """End a job that has waited for workers for too long."""
        if self._waiting_since is None or now - self._waiting_since < self.timeouts.wait_for_workers_s:
            return
        view = self.view
        if view is not None:
            reason = f"{len(view.members)} workers are left, {self.policy.min_workers} are needed"
        if self._turned:
            reason += f"; {len(self._turned)} were refused"
        text = f"waited {self.timeouts.wait_for_workers_s:g} s for workers: {reason}"
        self._ended = True
        for node_id, standing in self._standings.items():
            if standing is Standing.LIVE:
                out.append(Send(node_id, Turned(turn=Turn.ENDED, reason=text)))
        out.append(End(text))

    def _forget_nodes(self, out: list[Action]) -> None:
        """Nodes that are out, and hold no member, leave the roster; should they come back they are new."""
        held = {m.node_id for m in self.view.members} if self.view else set()
        for node_id, standing in self._standings.items():
            if standing in (Standing.GONE, Standing.UNKNOWN) and node_id not in held:
                node = self._nodes.pop(node_id)
                if node.disconnected_at is None:
                    out.append(Drop(node_id))

    def _send_roster(self, out: list[Action]) -> None:
        entries = sorted((n.entry for n in self._nodes.values()), key=lambda e: e.index)
        roster = Roster(
            lineage=self.lineage,
            primary=self.node_id,
            nodes=tuple(entries),
            claims=self._claims,
            vacancies=self._vacancies,
            term=self._term,
        )
        if self.view is None or roster == self._roster_sent:
            return
        self._roster_sent = roster
        out += [Send(node_id, roster) for node_id, node in self._nodes.items() if node.connected]

    def _turn_away(self, out: list[Action]) -> None:
        """Fence members of older views that are back too late; dismiss who comes after the end."""
        if self.view is None:
            return
        members = set(self.view.worker_ids())
        for node_id, node in self._nodes.items():
            for worker in node.report.workers if node.connected else ():
                if worker.worker_id in members or worker.worker_id in self._turned:
                    continue
                if worker.member:
                    self._turned.add(worker.worker_id)
                    reason = f"view {self.view.epoch} goes on without worker {worker.worker_id}"
                    out.append(Send(node_id, Fence(worker_id=worker.worker_id, reason=reason)))
                elif self.view.finished:
                    self._turned.add(worker.worker_id)
                    reason = "the job has done its last step"
                    out.append(Send(node_id, Turned(turn=Turn.DISMISSED, reason=reason, worker_id=worker.worker_id)))
