"""A node's care for its workers: who is alive, who waits as a spare, what to report, whom to kill. Does no I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from elaswave.coordination.detector import Evidence, WorkerSigns, examine_worker
from elaswave.coordination.node_actions import Complain, Died, Kill, SpareReady, SpareUsed, ToWorker, WorkerAction
from elaswave.coordination.protocol import (
    Activate,
    Bye,
    Depart,
    Fate,
    Fence,
    Finish,
    FullView,
    Join,
    LeaveSoon,
    Message,
    Pulse,
    Report,
    Suspect,
    Turn,
    Turned,
    ViewDelta,
    WorkerHello,
    WorkerRecord,
)
from elaswave.coordination.timeouts import Timeouts
from elaswave.topology import View

FENCE_GRACE_S = 1.0
"""A fenced worker may take this long to end by itself before it is killed."""


@dataclass(slots=True)
class _Worker:
    """What the node keeps of a process that has introduced itself."""

    worker_id: str
    pid: int
    local_rank: int
    spare: bool
    connected_at: float
    heard_at: float
    join: Join | None = None
    rank: int = -1
    replaces: str = ""
    fate: Fate | None = None
    fenced: bool = False
    dismissed: bool = False
    suspected: bool = False
    sent_epoch: int = -1
    kill_at: float | None = None
    progress: Pulse = field(default_factory=Pulse)

    @property
    def ready(self) -> bool:
        """May be reported to the primary."""
        return self.join is not None and not (self.spare or self.fenced or self.dismissed or self.fate)

    @property
    def over(self) -> bool:
        """Nothing more is expected of it; its end is no loss."""
        return self.fenced or self.dismissed or self.fate is not None


@dataclass(slots=True)
class _Expected:
    """A process that the launcher has started and that has not introduced itself."""

    pid: int
    local_rank: int
    since: float
    running_at: float
    killed: bool = False


@dataclass(slots=True)
class NodeWorkers:
    """The workers of one node.

    Every method that takes `now` may leave actions to be carried out, in order, in `actions`, and sets `changed` when
    the primary must get a new report.

    Args:
        is_stopped: whether the process with this pid is in state T.
    """

    expected_workers: int
    timeouts: Timeouts
    is_stopped: Callable[[int], bool]
    leaving: bool = False
    finished: bool = False
    changed: bool = False
    actions: list[WorkerAction] = field(default_factory=list)
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _expected: dict[str, _Expected] = field(default_factory=dict)
    _fates: dict[str, Fate] = field(default_factory=dict)
    _evidence: dict[str, str] = field(default_factory=dict)
    _predecessors: dict[int, str] = field(default_factory=dict)
    _activated: dict[int, str] = field(default_factory=dict)
    _view: View | None = None

    # -- what others ask ---------------------------------------------------------------------------------------

    def report(self) -> Report:
        """All the primary needs to know."""
        records = tuple(self._record(worker) for worker in self._workers.values() if worker.ready and worker.join)
        return Report(
            workers=records,
            fates=dict(self._fates),
            evidence=dict(self._evidence),
            expected_workers=0 if self.leaving else self.expected_workers,
        )

    @staticmethod
    def _record(worker: _Worker) -> WorkerRecord:
        assert worker.join is not None
        return WorkerRecord(
            worker_id=worker.worker_id,
            pid=worker.pid,
            local_rank=worker.local_rank,
            address=worker.join.address,
            config_digest=worker.join.config_digest,
            versions=worker.join.versions,
            replaces=worker.replaces,
            member=worker.rank >= 0,
        )

    @property
    def left(self) -> bool:
        """No worker of this node has anything left to do, and the newest view contains none."""
        return not self._fates and all(worker.over for worker in self._workers.values())

    def progress(self) -> Mapping[str, Pulse]:
        """How far each worker is, by its last sign of life."""
        return {worker.worker_id: worker.progress for worker in self._workers.values()}

    # -- connections -------------------------------------------------------------------------------------------

    def connected(self, now: float, hello: WorkerHello, pid: int) -> str | None:
        """Take in a worker that introduced itself; returns why not, or None."""
        if hello.worker_id in self._workers:
            return f"worker {hello.worker_id} is connected already; a child process must not inherit its environment"
        self._expected.pop(hello.worker_id, None)
        local_rank = self._free_local_rank() if hello.local_rank is None else hello.local_rank
        self._workers[hello.worker_id] = _Worker(
            worker_id=hello.worker_id,
            pid=pid,
            local_rank=-1 if hello.spare else local_rank,
            spare=hello.spare,
            connected_at=now,
            heard_at=now,
            replaces="" if hello.spare else self._predecessors.get(local_rank, ""),
        )
        return None

    def _free_local_rank(self) -> int:
        taken = {worker.local_rank for worker in self._workers.values() if not worker.over}
        return next(i for i in range(len(taken) + 1) if i not in taken)

    def said(self, now: float, worker_id: str, message: Message) -> None:
        """Take in a message."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        worker.heard_at, worker.suspected = now, False
        match message:
            case Pulse():
                worker.progress = message
            case Join():
                self._joined(worker, message)
            case Suspect():
                self.actions.append(Complain(message))
            case Depart():
                self._ended(worker, Fate.DEPARTED)
            case Finish():
                self._ended(worker, Fate.FINISHED)
            case Bye():
                self._died(now, worker, "it closed its connection", kill=False)
            case _:
                pass

    def _joined(self, worker: _Worker, join: Join) -> None:
        worker.join = join
        if self.finished or self.leaving:
            self._dismiss(worker)
        elif worker.spare:
            self.actions.append(SpareReady(worker.worker_id, worker.pid))
        self.changed = True

    def _ended(self, worker: _Worker, fate: Fate) -> None:
        """A planned end: the worker may still be there for a while, but nothing waits for it."""
        if worker.over:
            return
        worker.fate = fate
        self._fates[worker.worker_id] = fate
        self._predecessors[worker.local_rank] = worker.worker_id
        self.changed = True

    def _dismiss(self, worker: _Worker) -> None:
        if not worker.over:
            worker.dismissed = True
            reason = "the job has done its last step" if self.finished else "this node is leaving the job"
            self.actions.append(ToWorker(worker.worker_id, Turned(turn=Turn.DISMISSED, reason=reason)))

    # -- deaths ------------------------------------------------------------------------------------------------

    def sign(self, now: float, worker_id: str, evidence: Evidence) -> None:
        """The kernel, or the launcher, gave a sign of a worker's end."""
        worker = self._workers.get(worker_id)
        if worker is None:
            self._expected.pop(worker_id, None)
            return
        signs = WorkerSigns(
            abandoned=evidence is Evidence.MUTEX,
            exited=evidence is Evidence.EXIT,
            hung_up=evidence is Evidence.HANGUP,
            reaped=evidence is Evidence.LAUNCHER,
        )
        suspicion = examine_worker(signs, self.timeouts)
        if suspicion is not None:
            self._died(now, worker, str(suspicion.evidence), kill=not suspicion.certain)

    def _died(self, now: float, worker: _Worker, evidence: str, *, kill: bool) -> None:
        del self._workers[worker.worker_id]
        if kill:
            self.actions.append(Kill(worker.worker_id, worker.pid, evidence))
        if worker.spare or worker.dismissed or worker.fate is not None:
            return
        self._predecessors[worker.local_rank] = worker.worker_id
        self.actions.append(Died(worker.worker_id, worker.rank, worker.pid, evidence))
        if not worker.fenced:
            self._fates[worker.worker_id] = Fate.LOST
            self._evidence[worker.worker_id] = evidence
        self.changed = True
        if worker.join is not None:
            self._use_spare(now, worker.local_rank)

    def _use_spare(self, now: float, local_rank: int) -> None:
        """Put a waiting spare in the place of the worker that died, if there is one."""
        if self.leaving or self.finished:
            return
        spare = next((w for w in self._workers.values() if w.spare and w.join is not None and not w.over), None)
        if spare is None:
            return
        spare.spare, spare.local_rank, spare.heard_at = False, local_rank, max(spare.heard_at, now)
        spare.replaces = self._predecessors.get(local_rank, "")
        self._activated[local_rank] = spare.worker_id
        self.actions.append(ToWorker(spare.worker_id, Activate(local_rank=local_rank)))
        self.actions.append(SpareUsed(spare.worker_id, spare.pid, local_rank))
        self.changed = True

    # -- the launcher ------------------------------------------------------------------------------------------

    def expect(self, now: float, worker_id: str, local_rank: int, pid: int) -> None:
        """The launcher has started a process that will introduce itself."""
        if worker_id not in self._workers:
            self._expected[worker_id] = _Expected(pid=pid, local_rank=local_rank, since=now, running_at=now)

    def spare_for(self, now: float, local_rank: int) -> tuple[int, str] | None:
        """The spare that has taken a dead worker's place, as (pid, worker id); each is told once.

        The launcher asks when it has seen the process end, so whoever still holds the place is dead.
        """
        if local_rank not in self._activated:
            holder = next((w for w in self._workers.values() if w.local_rank == local_rank and not w.spare), None)
            if holder is not None:
                self.sign(now, holder.worker_id, Evidence.LAUNCHER)
            if local_rank not in self._activated:
                self._use_spare(now, local_rank)
        worker = self._workers.get(self._activated.pop(local_rank, ""))
        return None if worker is None else (worker.pid, worker.worker_id)

    def leave(self, now: float) -> None:
        """Ask every worker to leave at its next step boundary; spares and newcomers are not needed any more."""
        if self.leaving:
            return
        self.leaving = self.changed = True
        for worker in list(self._workers.values()):
            if worker.rank >= 0 and not worker.over:
                self.actions.append(ToWorker(worker.worker_id, LeaveSoon()))
            else:
                self._dismiss(worker)

    def kill_rest(self, why: str) -> None:
        """Kill every worker that still has something to do."""
        for worker in self._workers.values():
            if not worker.over:
                self.actions.append(Kill(worker.worker_id, worker.pid, why))

    # -- the primary -------------------------------------------------------------------------------------------

    def view_arrived(self, now: float, view: View, delta: ViewDelta | None) -> None:
        """Pass a new view on, and stop whoever is no longer in it."""
        self._view = view
        for worker in list(self._workers.values()):
            rank = view.rank_of(worker.worker_id)
            if rank is not None:
                worker.rank = rank
                fits = delta is not None and worker.sent_epoch == delta.base_epoch
                message = delta if delta is not None and fits else FullView(view=view)
                self.actions.append(ToWorker(worker.worker_id, message))
                worker.sent_epoch = view.epoch
            elif worker.rank >= 0:
                self.fence(now, worker.worker_id, f"view {view.epoch} goes on without it: {view.reason}")
        members = set(view.worker_ids())
        self._fates = {w: fate for w, fate in self._fates.items() if w in members}
        self._evidence = {w: text for w, text in self._evidence.items() if w in members}
        if view.finished and not self.finished:
            self.finished = True
            for worker in list(self._workers.values()):
                if worker.rank < 0:
                    self._dismiss(worker)

    def fence(self, now: float, worker_id: str, reason: str) -> None:
        """Stop a worker (empty: all of them) that is no longer a member."""
        for worker in list(self._workers.values()):
            if worker.over or worker_id not in ("", worker.worker_id):
                continue
            worker.fenced, worker.kill_at, self.changed = True, now + FENCE_GRACE_S, True
            self.actions.append(ToWorker(worker.worker_id, Fence(worker_id=worker.worker_id, reason=reason)))

    def turned(self, turned: Turned) -> None:
        """The primary turns a worker (empty: all of them) away for good."""
        for worker in list(self._workers.values()):
            if turned.worker_id in ("", worker.worker_id) and not worker.over:
                worker.dismissed = self.changed = True
                self.actions.append(ToWorker(worker.worker_id, turned))

    def suspected(self, worker_id: str) -> None:
        """Some other worker does not hear from this one: look closer."""
        if worker_id in self._workers:
            self._workers[worker_id].suspected = True

    # -- time --------------------------------------------------------------------------------------------------

    def slept(self, now: float) -> None:
        """This process itself did not run for a while: nobody's silence counts."""
        for worker in self._workers.values():
            worker.heard_at = now
        for expected in self._expected.values():
            expected.running_at = now

    def tick(self, now: float) -> None:
        """Look for those that have been silent, stopped or starting for too long."""
        for worker in list(self._workers.values()):
            self._look_at(now, worker)
        for worker_id, expected in self._expected.items():
            self._look_at_start(now, worker_id, expected)

    def _look_at(self, now: float, worker: _Worker) -> None:
        if worker.over:
            if worker.kill_at is not None and now >= worker.kill_at:
                worker.kill_at = None
                self.actions.append(Kill(worker.worker_id, worker.pid, "it was fenced and did not stop"))
            return
        silence_s = now - worker.heard_at
        if worker.join is not None and silence_s < 2 * self.timeouts.heartbeat_s:
            return
        signs = WorkerSigns(
            stopped=self.is_stopped(worker.pid),
            joined=worker.join is not None,
            suspected=worker.suspected,
            silence_s=silence_s,
            age_s=now - worker.connected_at,
        )
        suspicion = examine_worker(signs, self.timeouts)
        if suspicion is not None:
            self.actions.append(
                ToWorker(worker.worker_id, Fence(worker_id=worker.worker_id, reason=str(suspicion.evidence)))
            )
            self._died(now, worker, str(suspicion.evidence), kill=True)

    def _look_at_start(self, now: float, worker_id: str, expected: _Expected) -> None:
        if not self.is_stopped(expected.pid):
            expected.running_at = now
        late = now - expected.since >= self.timeouts.start_timeout_s
        stopped = now - expected.running_at >= self.timeouts.suspicion_s
        if (late or stopped) and not expected.killed:
            expected.killed = True
            why = Evidence.NEVER_JOINED if late else Evidence.STOPPED
            self.actions.append(Kill("", expected.pid, str(why)))
            self.actions.append(Died(worker_id, -1, expected.pid, str(why)))
