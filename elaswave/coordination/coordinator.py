"""The primary: turns what nodes report into views, without sockets, threads or a clock of its own.

`handle(now, event)` returns the actions to carry out, so that the job and a simulator run the same code. All of its
state is soft: a standby that takes over rebuilds it from the newest view, the roster and the nodes' hellos.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from elaswave.coordination import membership
from elaswave.coordination.admission import Admission
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
from elaswave.coordination.membership import State
from elaswave.coordination.protocol import (
    Address,
    Claim,
    Fence,
    FullView,
    Message,
    NodeHello,
    NodeWelcome,
    Pulse,
    Report,
    Resend,
    Roster,
    Suspect,
    Turn,
    Turned,
)
from elaswave.coordination.roll import Node, Roll
from elaswave.coordination.timeouts import Timeouts
from elaswave.topology import View

EPOCH_LEAP = 16
"""A new primary skips this many epochs, times its place among the nodes: the lost one, or another that took over and
was lost, may have published some that nobody here has seen."""


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
    _roll: Roll = field(init=False)
    _admission: Admission = field(default_factory=Admission)
    _takeover_until: float | None = None
    _last_epoch: int = 0
    _term: int = 0
    _claims: int = 0
    _vacancies: tuple[membership.Vacancy, ...] = ()
    _loss_due: float | None = None
    _join_due: float | None = None
    _waiting_since: float | None = None
    _roster_sent: Roster | None = None
    _ended: bool = False

    def __post_init__(self) -> None:
        self._roll = Roll(own_id=self.node_id, timeouts=self.timeouts)
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
            self._roll.await_node(now, entry)

    def _adopt_view(self, now: float, view: View) -> None:
        """Start from `view` when it is newer than what is known here."""
        if self.view is not None and view.epoch <= self.view.epoch:
            return
        self.view = view
        leap = EPOCH_LEAP * (1 + self._roll.own_index)
        self._last_epoch = max(self._last_epoch, view.epoch + leap - 1)
        self._term = max(self._term, view.term + 1)
        self._takeover_until = now + self.timeouts.takeover_s
        self._waiting_since = now if view.paused else None
        for member in view.members:
            self._roll.await_member(now, member)

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
                self._roll.heard(now, node_id)
                return out
            case NodeSaid(node_id, message):
                self._on_message(now, node_id, message, out)
            case NodeDisconnected(node_id):
                self._roll.disconnected(now, node_id)
            case NodeGone(node_id):
                self._roll.gone(node_id)
            case Slept():
                self._roll.slept(now)
            case Tick():
                if not self._roll.changed(now) and self._idle:
                    return out
        self._settle(now, out)
        return out

    @property
    def _idle(self) -> bool:
        """Nothing is due that only needs time to pass."""
        dues = (self._takeover_until, self._loss_due, self._join_due, self._waiting_since)
        return all(due is None for due in dues)

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
        return self._roll.addresses()

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
        entry = self._roll.greeted(now, hello, host)
        out.append(Send(hello.node_id, NodeWelcome(node_id=self.node_id, index=entry.index, started=self.started)))
        if self._roster_sent is not None:
            out.append(Send(hello.node_id, self._roster_sent))

    def _foreign(self, roster: Roster) -> bool:
        return self.view is not None and roster.lineage != self.lineage

    def _bring_up_to_date(self, node: Node, out: list[Action]) -> None:
        if self.view is not None and node.sent_epoch != self.view.epoch:
            node.sent_epoch = self.view.epoch
            out.append(Send(node.entry.node_id, FullView(view=self.view)))

    def _on_message(self, now: float, node_id: str, message: Message, out: list[Action]) -> None:
        node = self._roll.heard(now, node_id)
        if node is None:
            return
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
        node = self._roll.nodes.get(member.node_id) if member else None
        if node is not None and node.connected:
            out.append(Send(node.entry.node_id, message))

    # -- decisions ---------------------------------------------------------------------------------------------

    def _settle(self, now: float, out: list[Action]) -> None:
        """Look at the whole state and do what it asks for."""
        self._roll.look(now)
        if self._takeover_until is not None and not self._taken_over(now):
            return
        out += self._admission.check(self._roll.workers())
        state = self._state()
        self._note_changes(now, state)
        view, reason = membership.view_compute(now, self._with_dues(state))
        if view is not None and not self._publish(now, state, view, out):
            return
        self._check_wait(now, reason, out)
        self._forget_nodes(out)
        self._send_roster(out)
        for _, node in self._roll.connected():
            self._bring_up_to_date(node, out)
        if self.view is not None:
            out += self._admission.turn_away(self.view, self._roll.workers(of_connected=True))

    def _taken_over(self, now: float) -> bool:
        """True once every node has come or is known to be dead, or the others were waited for long enough."""
        if self._roll.awaited() and self._takeover_until is not None and now < self._takeover_until:
            return False
        self._takeover_until = None
        return True

    def _state(self) -> State:
        return State(
            view=self.view,
            nodes=self._roll.states(self._admission.turned),
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
        for node_id, node in self._roll.live():
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
        out += [Send(node_id, Fence(worker_id="", reason=reason)) for node_id, _ in self._roll.live()]
        out.append(StepDown(reason))

    def _check_wait(self, now: float, reason: str, out: list[Action]) -> None:
        """End a job that has waited for workers for too long."""
        if self._waiting_since is None or now - self._waiting_since < self.timeouts.wait_for_workers_s:
            return
        view = self.view
        if view is not None:
            reason = f"{len(view.members)} workers are left, {self.policy.min_workers} are needed"
        if self._admission.turned:
            reason += f"; {len(self._admission.turned)} were refused"
        text = f"waited {self.timeouts.wait_for_workers_s:g} s for workers: {reason}"
        self._ended = True
        out += [Send(node_id, Turned(turn=Turn.ENDED, reason=text)) for node_id, _ in self._roll.live()]
        out.append(End(text))

    def _forget_nodes(self, out: list[Action]) -> None:
        """Nodes that are out, and hold no member, leave the roster; should they come back they are new."""
        held = {m.node_id for m in self.view.members} if self.view else set()
        out += [Drop(node_id) for node_id in self._roll.forget(held)]

    def _send_roster(self, out: list[Action]) -> None:
        roster = Roster(
            lineage=self.lineage,
            primary=self.node_id,
            nodes=self._roll.entries(),
            claims=self._claims,
            vacancies=self._vacancies,
            term=self._term,
        )
        if self.view is None or roster == self._roster_sent:
            return
        self._roster_sent = roster
        out += [Send(node_id, roster) for node_id, _ in self._roll.connected()]
