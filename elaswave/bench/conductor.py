"""The outside of a schedule: starts workers, tells nodes to leave, and only then lets go of those who are held."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elaswave.bench.miniature import MiniJob
from elaswave.clock import Deadline
from elaswave.coordination.bootstrap import EXIT_FENCED
from elaswave.errors import BenchError
from elaswave.events import Kind, Phase
from elaswave.faults.probe import let_go
from elaswave.faults.scenario import What
from elaswave.faults.schedule import Leave, Schedule, Start
from elaswave.telemetry.follower import Follower

LOOK_S = 0.02
LEFT_REASON = "asked to leave"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What has been done to a run.

    Attributes:
        kills, hangs: workers that hurt themselves.
        in_recovery: of these, during a recovery.
        points: where, (what, stage or phase) -> how often.
        leaves, joins: planned; joins are of workers in addition to those that replace others.
        unplanned: workers that were lost without a fault.
    """

    kills: int = 0
    hangs: int = 0
    in_recovery: int = 0
    points: dict[tuple[str, str], int] = field(default_factory=dict)
    leaves: int = 0
    joins: int = 0
    unplanned: int = 0

    @property
    def faults(self) -> int:
        return self.kills + self.hangs


class Conductor:
    """Carries out what a schedule wants done from outside.

    Args:
        job: of the run, not started.
        schedule: of which the job's workers have the scenario.
    """

    def __init__(self, job: MiniJob, schedule: Schedule) -> None:
        self._job = job
        self._starts: list[Start] = list(schedule.starts)
        self._leaves: list[Leave] = list(schedule.leaves)
        self._holds = list(schedule.holds)
        self._follower = Follower(job.folder)
        self._step = 0
        self._victims: dict[int, int] = {}
        self._struck: set[int] = set()
        self._committed: set[int] = set()
        self._late: set[int] = set()
        self._ranks: dict[int, int] = {}
        self._vacant: dict[int, int] = {}
        self._owed: dict[int, int] = {}
        self.tally = Tally()

    def run(self, timeout_s: float) -> None:
        """Start the job and see it through.

        Raises:
            BenchError: it was not done in time, or a worker failed.
        """
        deadline = Deadline(timeout_s)
        self._job.start()
        while self._job.running:
            if deadline.passed():
                self._job.show_stacks()
                raise BenchError(f"not done in {timeout_s:g} s, the last step is {self._step}")
            self._take(self._follower.poll())
            found = self._job.ended(LOOK_S)
            while found is not None:
                self._take(self._follower.poll())
                self._end(*found)
                found = self._job.ended(0.0)
            self._act()

    # -- what has happened -------------------------------------------------------------------------------------

    def _take(self, events: Iterable[Mapping[str, Any]]) -> None:
        for event in events:
            kind = event.get("kind")
            if kind == Kind.STEP_COMMITTED:
                self._step = max(self._step, int(event["step"]))
                self._committed.add(int(event["pid"]))
            elif kind == Kind.JOINED:
                self._ranks[int(event["pid"])] = int(event["rank"])
            elif kind == Kind.FAULT and event["what"] != What.HOLD:
                self._victims[int(event["target_pid"])] = int(event["step"])
                self._count(str(event["what"]), str(event["phase"]))
            elif kind == Kind.LEFT and event.get("reason") == LEFT_REASON:
                self.tally.leaves += 1

    def _count(self, what: str, point: str) -> None:
        if what == What.KILL:
            self.tally.kills += 1
        else:
            self.tally.hangs += 1
        self.tally.in_recovery += point in list(Phase)
        self.tally.points[what, point] = self.tally.points.get((what, point), 0) + 1

    def _end(self, pid: int, local_rank: int, status: int) -> None:
        """A worker has ended."""
        if status == 0 or self._job.service.finished:
            return
        if status > 0 and status != EXIT_FENCED:
            raise BenchError(f"worker {pid} ended with status {status}")
        planned = pid in self._victims
        self.tally.unplanned += not planned
        arriving = pid in self._late and pid not in self._committed
        if planned:
            self._struck.add(self._victims[pid])
        if arriving or not planned:
            self._late.add(self._job.spawn(local_rank))
        else:
            self._vacant[self._ranks[pid]] = local_rank

    # -- what is to be done ------------------------------------------------------------------------------------

    def _act(self) -> None:
        view = self._job.service.view
        if view is None or view.finished:
            return
        for start in [start for start in self._starts if self._due(start)]:
            self._starts.remove(start)
            self._carry_out(start)
        self._replace()
        for leave in [leave for leave in self._leaves if self._step >= leave.step - 1]:
            self._leaves.remove(leave)
            pids = [member.pid for member in view.members if member.rank == leave.rank]
            if pids:
                self._job.leave(pids[0])
        if self._job.settled:
            for hold in [hold for hold in self._holds if self._prepared(hold.step)]:
                self._holds.remove(hold)
                let_go(self._job.folder, hold.number)

    def _due(self, start: Start) -> bool:
        if not start.after_loss:
            return self._step >= start.step - 1
        return start.step in self._struck or self._step >= start.step

    def _prepared(self, step: int) -> bool:
        """The job is about to be held in this step, and nothing is left to do before it may go on."""
        waiting = [*self._starts, *self._leaves]
        return self._step >= step - 1 and not any(item.step <= step for item in waiting)

    def _carry_out(self, start: Start) -> None:
        self._owed |= dict.fromkeys(start.ranks, start.step)
        for _ in range(start.newcomers):
            self._late.add(self._job.add_node())
            self.tally.joins += 1

    def _replace(self) -> None:
        """Start workers in the places that are to be filled; a loss that has not happened in its step is forgotten."""
        for rank, step in list(self._owed.items()):
            if rank in self._vacant:
                self._late.add(self._job.spawn(self._vacant.pop(rank)))
                del self._owed[rank]
            elif self._step > step:
                del self._owed[rank]
