"""Who is in the job: the next view as a pure function of the time and of what the nodes reported.

After `quorum_compute` in torchft's lighthouse: the decision takes the clock as an argument and returns its reason.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from elaswave.coordination.detector import Standing
from elaswave.coordination.protocol import Fate, Vacancy, WorkerRecord
from elaswave.topology import Member, View


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node as the primary sees it.

    Attributes:
        index: order of the nodes; decides the first ranks.
        standing: whether it is there.
        expected_workers: how many workers it means to run.
        workers: those that are alive and ready, by its last report.
        fates: how workers ended that may still be in the view.
        evidence: one line on each of those deaths.
    """

    node_id: str
    host_id: str
    index: int
    standing: Standing
    expected_workers: int = 0
    workers: tuple[WorkerRecord, ...] = ()
    fates: Mapping[str, Fate] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the next view depends on.

    Attributes:
        view: the newest view; None while the job forms.
        nodes: by node id.
        vacancies: ranks without a worker.
        min_nodes, min_workers: what the job needs to form, and to run.
        next_epoch, term: of the view to come.
        loss_due, join_due: earliest time of a view that reports a loss, or anything else; later ones share it.
    """

    view: View | None
    nodes: Mapping[str, NodeState]
    vacancies: tuple[Vacancy, ...] = ()
    min_nodes: int = 1
    min_workers: int = 1
    next_epoch: int = 1
    term: int = 0
    loss_due: float = 0.0
    join_due: float = 0.0


class Status(StrEnum):
    """What became of a member of the newest view."""

    ALIVE = "alive"
    LOST = "lost"
    DEPARTED = "departed"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class Quorum(StrEnum):
    """Whether those who are left may go on without those whose fate is unknown."""

    GO = "go"
    WITNESS = "witness"  # exactly half: only the side that takes the witness file
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How the world differs from the newest view."""

    statuses: Mapping[str, Status]
    joiners: tuple[tuple[NodeState, WorkerRecord], ...]

    @property
    def lost(self) -> bool:
        return any(status in (Status.LOST, Status.UNKNOWN) for status in self.statuses.values())

    @property
    def any(self) -> bool:
        return bool(self.joiners) or any(status is not Status.ALIVE for status in self.statuses.values())

    def count(self, status: Status) -> int:
        return sum(s is status for s in self.statuses.values())


def status_of(member: Member, state: State) -> Status:
    """What is known about a member."""
    node = state.nodes.get(member.node_id)
    if node is None:
        return Status.UNKNOWN
    fate = node.fates.get(member.worker_id)
    if fate is not None:
        return Status(str(fate))
    match node.standing:
        case Standing.GONE:
            return Status.LOST
        case Standing.UNKNOWN:
            return Status.UNKNOWN
        case Standing.PENDING:
            return Status.ALIVE
        case Standing.LIVE:
            there = any(worker.worker_id == member.worker_id for worker in node.workers)
            return Status.ALIVE if there else Status.LOST


def changes(state: State) -> Changes:
    """Compare the newest view with what the nodes report."""
    view = state.view
    if view is None:
        return Changes(statuses={}, joiners=())
    statuses = {member.worker_id: status_of(member, state) for member in view.members}
    finished = view.finished or Status.FINISHED in statuses.values()
    joiners = () if finished else tuple(_joiners(state, view))
    return Changes(statuses=statuses, joiners=joiners)


def _joiners(state: State, view: View) -> Iterator[tuple[NodeState, WorkerRecord]]:
    members = set(view.worker_ids())
    for node in sorted(state.nodes.values(), key=lambda n: n.index):
        if node.standing is not Standing.LIVE:
            continue
        for worker in sorted(node.workers, key=lambda w: w.local_rank):
            if worker.worker_id not in members and not worker.member:
                yield node, worker


def quorum(found: Changes) -> Quorum:
    """Known deaths do not count; members whose fate is unknown do, and more than half of all others must be here."""
    alive, unknown = found.count(Status.ALIVE), found.count(Status.UNKNOWN)
    if alive > unknown or unknown == 0:
        return Quorum.GO
    return Quorum.WITNESS if alive == unknown else Quorum.STOP


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Whether a view without the members of unknown fate may be published; `refusal` says why not."""

    refusal: str | None = None
    took_witness: bool = False


def decide_split(found: Changes, take_witness: Callable[[], bool | None]) -> Split:
    """Keep a job that was cut in two from going on twice.

    A majority takes the witness, too, where there is one: the other side may count with an older view.

    Args:
        take_witness: True: taken now, False: somebody else has it, None: there is no witness.
    """
    alive, unknown = found.count(Status.ALIVE), found.count(Status.UNKNOWN)
    if not unknown:
        return Split()
    verdict = quorum(found)
    if verdict is Quorum.STOP:
        return Split(
            refusal=f"only {alive} workers are here and nothing is known of {unknown} others: they may go on without us"
        )
    taken = take_witness()
    if taken is False:
        return Split(refusal="the other workers have taken the witness file and go on without us")
    if taken is None and verdict is Quorum.WITNESS:
        return Split(
            refusal=f"exactly half of the workers ({alive}) are here and there is no witness file to decide; put the "
            "run folder on storage that all nodes share, or use an odd number of nodes"
        )
    return Split(took_witness=taken is True)


def view_compute(now: float, state: State) -> tuple[View | None, str]:
    """The next view, or None and what is being waited for."""
    if state.view is None:
        return _form(state)
    found = changes(state)
    if not found.any:
        return None, "nothing has changed"
    if now < (state.loss_due if found.lost else state.join_due):
        return None, "waiting for changes that may share the view"
    view = _succeed(state.view, state, found)
    return view, view.reason


def missing_to_form(state: State) -> str | None:
    """What a job that has not formed yet is waiting for; None when it can form."""
    live = [node for node in state.nodes.values() if node.standing is Standing.LIVE and node.expected_workers]
    ready = sum(len(node.workers) for node in live)
    expected = sum(node.expected_workers for node in live)
    if len(live) < state.min_nodes:
        return f"{len(live)} of {state.min_nodes} nodes and {ready} of their {expected} workers are here"
    short = [node for node in live if len(node.workers) < node.expected_workers]
    if short or not ready:
        names = ", ".join(f"node {n.node_id}: {len(n.workers)} of {n.expected_workers}" for n in short)
        return f"{ready} of {expected} workers are here ({names})"
    return None


def _form(state: State) -> tuple[View | None, str]:
    missing = missing_to_form(state)
    if missing is not None:
        return None, missing
    live = [n for n in state.nodes.values() if n.standing is Standing.LIVE]
    order = [(n, w) for n in sorted(live, key=lambda n: n.index) for w in sorted(n.workers, key=lambda w: w.local_rank)]
    members = tuple(_member(rank, node, worker) for rank, (node, worker) in enumerate(order))
    reason = f"formed with {_count(len(members), 'worker')} on {_count(len(live), 'node')}"
    view = View(
        epoch=state.next_epoch,
        members=members,
        reason=reason,
        paused=len(members) < state.min_workers,
        term=state.term,
    )
    return view, reason


def _member(rank: int, node: NodeState, worker: WorkerRecord) -> Member:
    return Member(
        rank=rank,
        worker_id=worker.worker_id,
        node_id=node.node_id,
        host_id=node.host_id,
        pid=worker.pid,
        address=worker.address,
    )


def _succeed(old: View, state: State, found: Changes) -> View:
    """The view after `old`, with everything that changed in it."""
    staying = [m for m in old.members if found.statuses[m.worker_id] is Status.ALIVE]
    free = vacancies_after(state, staying)
    ranks = assign_ranks(tuple(worker for _, worker in found.joiners), _nodes_of(found), free, staying)
    joined = [_member(ranks[worker.worker_id], node, worker) for node, worker in found.joiners]
    left = {w for w, status in found.statuses.items() if status in (Status.DEPARTED, Status.FINISHED)}
    finished = old.finished or Status.FINISHED in found.statuses.values()
    members = tuple(sorted([*staying, *joined], key=lambda m: m.rank))
    return replace(
        old,
        epoch=state.next_epoch,
        members=members,
        reason=_reason(old, state, found, joined),
        departed=old.departed | left,
        paused=len(members) < state.min_workers and not finished,
        finished=finished,
        term=state.term,
    )


def _nodes_of(found: Changes) -> dict[str, str]:
    return {worker.worker_id: node.node_id for node, worker in found.joiners}


def vacancies_after(state: State, staying: list[Member]) -> tuple[Vacancy, ...]:
    """Ranks that are free once only `staying` are left, in order of rank."""
    there = {m.rank for m in staying}
    free = {v.rank: v for v in state.vacancies if v.rank not in there}
    for member in state.view.members if state.view else ():
        if member.rank not in there:
            free[member.rank] = Vacancy(rank=member.rank, worker_id=member.worker_id, node_id=member.node_id)
    return tuple(free[rank] for rank in sorted(free))


def assign_ranks(
    joiners: tuple[WorkerRecord, ...],
    node_of: Mapping[str, str],
    free: tuple[Vacancy, ...],
    staying: list[Member],
) -> dict[str, int]:
    """A rank for each joiner: its predecessor's, the lowest lost on its own node, the lowest free one, a new one."""
    vacancies = list(free)
    ranks: dict[str, int] = {}

    def take(chosen: Vacancy, worker: WorkerRecord) -> None:
        vacancies.remove(chosen)
        ranks[worker.worker_id] = chosen.rank

    for worker in joiners:
        for vacancy in vacancies:
            if worker.replaces and vacancy.worker_id == worker.replaces:
                take(vacancy, worker)
                break
    for worker in joiners:
        own = [v for v in vacancies if v.node_id == node_of[worker.worker_id]]
        if worker.worker_id not in ranks and own:
            take(own[0], worker)
    top = max([m.rank for m in staying] + [v.rank for v in free], default=-1)
    for worker in joiners:
        if worker.worker_id in ranks:
            continue
        if vacancies:
            take(vacancies[0], worker)
        else:
            top += 1
            ranks[worker.worker_id] = top
    return ranks


def _reason(old: View, state: State, found: Changes, joined: list[Member]) -> str:
    """Who came and went, for people."""
    parts: list[str] = []
    for status, verb in (
        (Status.LOST, "lost"),
        (Status.UNKNOWN, "cut off"),
        (Status.DEPARTED, "left"),
        (Status.FINISHED, "finished"),
    ):
        gone = [m for m in old.members if found.statuses[m.worker_id] is status]
        parts += [f"{verb} rank {m.rank}{_because(m, state)}" for m in gone]
    parts += [f"joined rank {m.rank}" for m in joined]
    shown = parts[:8] + ([f"and {len(parts) - 8} more"] if len(parts) > 8 else [])
    return "; ".join(shown)


def _because(member: Member, state: State) -> str:
    node = state.nodes.get(member.node_id)
    if node is None:
        return f": nothing is heard of node {member.node_id}"
    if node.evidence.get(member.worker_id):
        return f": {node.evidence[member.worker_id]}"
    match node.standing:
        case Standing.GONE:
            return f": node {node.node_id} is gone"
        case Standing.UNKNOWN:
            return f": nothing is heard of node {node.node_id}"
        case _:
            return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
