"""A job's life among failures, under a virtual clock: what every policy gets done, and what it loses.

All policies live through the same failures and the same views, which the production detector and membership make. A
failure interrupts the step, and how much of it is done again, how long the change takes and whether the job falls back
to a checkpoint is what sets policies apart besides their plans.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elaswave.coordination.timeouts import Timeouts
from elaswave.planner.spares import Choice, Outlook, decide
from elaswave.simulator.failures import HOUR_S, Cluster, Failure, Kind
from elaswave.simulator.workload import Periods, Workload, busy
from elaswave.simulator.world import World, detected_s
from elaswave.snapshot import ring

OURS = "elaswave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a policy pays beside its plan.

    Attributes:
        change_s: from the detection of a loss until the next step.
        join_s: to take in workers that have come back; infinite if that waits for the next loss.
        to_checkpoint: a loss puts the job back to its last checkpoint.
        keeps: survivors keep what they have added up of the open step.
        sheds_slow: slow workers are left out where that is faster.
    """

    change_s: float
    join_s: float
    to_checkpoint: bool = False
    keeps: bool = False
    sheds_slow: bool = False


COSTS: Mapping[str, Costs] = {
    OURS: Costs(change_s=1.0, join_s=1.0, keeps=True, sheds_slow=True),
    "torchft": Costs(change_s=1.0, join_s=1.0),
    "recycle": Costs(change_s=1.0, join_s=1.0),
    "oobleck": Costs(change_s=10.0, join_s=10.0),
    "restart": Costs(change_s=300.0, join_s=math.inf, to_checkpoint=True),
}
"""Assumed, and equal where nothing speaks against it: in place about a second each, as torchft reports and as `bench
mttr` measures of us; layers are fetched anew in Oobleck; a scheduler needs minutes to start a job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What runs on the cluster.

    Attributes:
        work: of a step.
        step_s: of the full grid under the job's schedule, with our plan.
        checkpoint_s: between two checkpoints; writing them costs nothing.
        copies: of every shard on neighbours.
        min_workers: with fewer the job waits.
    """

    work: Workload
    step_s: float
    checkpoint_s: float = 1800.0
    copies: int = 2
    min_workers: int = 1


@dataclass(slots=True)
class Account:
    """What became of a policy's time.

    Attributes:
        done_s: of the full grid, for what was committed and kept.
        again_s: of the full grid, for what was computed and lost.
        stopped_s: detection, change, waiting for workers.
        losses: that interrupted a step.
        fallbacks: to a checkpoint.
    """

    done_s: float = 0.0
    again_s: float = 0.0
    stopped_s: float = 0.0
    losses: int = 0
    fallbacks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A change of workers, or of their speed.

    Attributes:
        at_s: when it happened.
        noticed_s: until it was noticed; 0 for joins.
        alive: (ranks,) bool, behind it.
        slow: (ranks,) bool, behind it.
        lost: how many were lost.
        state_lost: all copies of some shard of ours were.
    """

    at_s: float
    noticed_s: float
    alive: np.ndarray
    slow: np.ndarray
    lost: int
    state_lost: bool


def live(
    cluster: Cluster, job: Job, happenings: Sequence[Failure], hours: float, timeouts: Timeouts
) -> dict[str, Account]:
    """Let all policies live through the same failures.

    Args:
        cluster: the job runs on all of it.
        job: what it does.
        happenings: ascending.
        hours: to simulate.
        timeouts: of the control plane.
    """
    everyone, nobody = np.ones(cluster.ranks, bool), np.zeros(cluster.ranks, bool)
    periods = Periods(job.work)
    unit_s = job.step_s / periods.of(OURS, everyone)
    lives = {name: _Life(name, costs, job, cluster, periods, unit_s) for name, costs in COSTS.items()}
    for life in lives.values():
        life.enter(0.0, everyone, nobody)
    for moment in moments(cluster, job, happenings, hours, timeouts):
        for life in lives.values():
            life.pass_through(moment)
    for life in lives.values():
        life.work_until(hours * HOUR_S)
    return {name: life.account for name, life in lives.items()}


def moments(
    cluster: Cluster, job: Job, happenings: Sequence[Failure], hours: float, timeouts: Timeouts
) -> Iterator[Moment]:
    """The changes, with the views of the production membership; what comes back after the end is left out."""
    world = World(cluster, job.min_workers, timeouts)
    slow_until = np.zeros(cluster.ranks)
    queue: list[tuple[float, int, int, Failure]] = []
    for order, failure in enumerate(happenings):
        heapq.heappush(queue, (failure.at_s, 1, order, failure))
    alive, order = np.ones(cluster.ranks, bool), len(happenings)
    ends: dict[int, tuple[int, ...]] = {}
    while queue and queue[0][0] < hours * HOUR_S:
        at_s, begins, number, failure = heapq.heappop(queue)
        lost, noticed_s, state_lost = 0, 0.0, False
        if not begins:
            if failure.kind is not Kind.SLOW:
                view = world.join(ends.pop(number), at_s)
                alive = _alive(cluster, view.ranks())
        else:
            hit = tuple(rank for rank in failure.ranks if alive[rank])
            if not hit:
                continue
            if failure.kind is Kind.SLOW:
                slow_until[list(hit)] = at_s + failure.lasts_s
            else:
                noticed_s, lost = detected_s(failure.kind, timeouts), len(hit)
                state_lost = _state_lost(cluster, job.copies, alive, hit)
                slow_until[list(hit)] = 0.0
                alive = _alive(cluster, world.lose(hit, failure.kind, at_s + noticed_s).ranks())
                ends[order] = hit
            heapq.heappush(queue, (at_s + failure.lasts_s, 0, order, failure))
            order += 1
        yield Moment(
            at_s=at_s,
            noticed_s=noticed_s,
            alive=alive,
            slow=alive & (slow_until > at_s),
            lost=lost,
            state_lost=state_lost,
        )


class _Life:
    """One policy, from moment to moment."""

    def __init__(self, name: str, costs: Costs, job: Job, cluster: Cluster, periods: Periods, unit_s: float) -> None:
        self.account = Account()
        self._name, self._costs, self._job, self._cluster = name, costs, job, cluster
        self._periods, self._unit_s = periods, unit_s
        self._from_s = self._saved_s = 0.0  # when work goes on; when the last checkpoint was written
        self._step_s, self._since_saved_s = math.inf, 0.0
        self._used = self._busy = np.zeros(cluster.ranks, bool)

    def enter(self, at_s: float, alive: np.ndarray, slow: np.ndarray) -> None:
        """Plan for these workers, and work from then on."""
        self._from_s, self._used = at_s, alive
        self._busy = busy(self._name, self._job.work, alive)
        self._step_s = self._slowed(alive, slow)

    def pass_through(self, moment: Moment) -> None:
        """What a change does."""
        self.work_until(moment.at_s)
        if moment.lost and bool((self._busy & ~moment.alive).any()):
            self._lose(moment)
            return
        joined = bool((moment.alive & ~self._used).any())
        waits = math.isinf(self._costs.join_s) and not math.isinf(self._step_s)
        alive = self._used & moment.alive if joined and waits else moment.alive
        join_s = self._costs.change_s if math.isinf(self._costs.join_s) else self._costs.join_s
        self._stop(moment.at_s, join_s if joined and not waits else 0.0, alive, moment.slow & alive)

    def work_until(self, at_s: float) -> None:
        """Take steps; the last one may be open."""
        passed_s = max(0.0, at_s - self._from_s)
        if math.isinf(self._step_s):
            self.account.stopped_s += passed_s
        else:
            gained_s = passed_s * self._job.step_s / self._step_s
            self.account.done_s += gained_s
            self._since_saved_s += gained_s
            while at_s - self._saved_s >= self._job.checkpoint_s:
                self._saved_s += self._job.checkpoint_s
                self._since_saved_s = gained_s * min(1.0, (at_s - self._saved_s) / passed_s) if passed_s else 0.0
        self._from_s = max(self._from_s, at_s)

    def _lose(self, moment: Moment) -> None:
        account, job = self.account, self._job
        account.losses += 1
        back = self._costs.to_checkpoint or (self._name == OURS and moment.state_lost)
        if back:
            account.fallbacks += 1
            lost_s = min(self._since_saved_s, account.done_s)
            self._since_saved_s = 0.0
        else:
            share = min(1.0, moment.lost * job.work.stages / self._cluster.ranks) if self._costs.keeps else 1.0
            lost_s = min(share * job.step_s / 2, account.done_s)  # a failure comes in the middle of a step on average
            self._since_saved_s = max(0.0, self._since_saved_s - lost_s)
        account.done_s -= lost_s
        account.again_s += lost_s
        change_s = COSTS["restart"].change_s if back else self._costs.change_s
        self._stop(moment.at_s, moment.noticed_s + change_s, moment.alive, moment.slow)

    def _stop(self, at_s: float, pause_s: float, alive: np.ndarray, slow: np.ndarray) -> None:
        """Stand still, then go on with these workers."""
        begin_s = max(self._from_s, at_s)
        self.account.stopped_s += pause_s
        self.enter(begin_s + pause_s, alive, slow)

    def _slowed(self, alive: np.ndarray, slow: np.ndarray) -> float:
        """Seconds of a step: a slow worker delays everyone, unless it is left out."""
        if alive.sum() < self._job.min_workers:
            return math.inf
        full_s = self._periods.of(self._name, alive) * self._unit_s
        if not slow.any():
            return full_s
        slowed_s = full_s * self._cluster.slowdown
        if not self._costs.sheds_slow:
            return slowed_s
        without_s = self._periods.of(self._name, alive & ~slow) * self._unit_s
        outlook = Outlook(
            steps_left=max(1, round(self._cluster.slow_h * HOUR_S / self._job.step_s)),
            arrival_s=math.inf,
            step_full_s=full_s,
            step_now_s=slowed_s,
            step_shrunk_s=without_s,
            shrink_s=self._costs.change_s,
            admit_s=self._costs.join_s,
        )
        return without_s if decide(outlook)[0] is Choice.SHRINK else slowed_s


def _alive(cluster: Cluster, ranks: Sequence[int]) -> np.ndarray:
    found = np.zeros(cluster.ranks, bool)
    found[list(ranks)] = True
    return found


def _state_lost(cluster: Cluster, copies: int, alive: np.ndarray, hit: Sequence[int]) -> bool:
    """Whether all holders of some shard are lost at once; copies lie on other nodes."""
    if len({cluster.node_of(rank) for rank in hit}) <= copies and len(hit) < int(alive.sum()):
        return False
    ranks = np.flatnonzero(alive)
    gone = np.isin(ranks, hit)
    holders = ring.holders([f"node {cluster.node_of(rank)}" for rank in ranks.tolist()], copies)
    return any(gone[owner] and gone[list(others)].all() for owner, others in enumerate(holders))
