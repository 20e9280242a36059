"""Random schedules of kills, hangs, leaves and joins that a job must survive: a pure function of a seed. Pure.

Workers hurt themselves at exact points of a step or of a recovery; what happens outside them (workers that are
started, or told to leave) is tied to steps, too. Now and then workers are held at a point until all of that has been
seen by the job, so that it is known who is a member when the next fault strikes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from elaswave.events import Phase, Stage
from elaswave.faults.scenario import Fault, What

HOLD_AT = Stage.BACKWARD
"""Every member passes it in every step, looks at its messages behind it, and only then tells whether it has seen a new
view, and whether it leaves."""
STAGES, PHASES = tuple(Stage), tuple(Phase)
GUESTS_MAX = 2
EXTRA_MAX = 2
"""Workers that may come in addition to those that the job began with."""
STOP_SHARE = 0.22
NTH_MAX = 4
"""Of its micro-batches, the last in which a victim is hurt."""
PAIR_SHARE = 0.55
ARRIVAL_SHARE = 0.35
LEAVE_SHARE = 0.12
JOIN_SHARE = 0.12
START_SHARE = 0.25
GATHER_SHARE = {False: 0.75, True: 0.25}
"""How often it is waited for those who come, by whether there is a recovery at hand that can be disturbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Workers are started.

    Attributes:
        step: when the step before has been committed, or as soon as a fault of this step has ended a worker.
        after_loss: the latter.
        ranks: of the lost workers in whose places these are, if they were lost.
        newcomers: on nodes of their own.
    """

    step: int
    after_loss: bool = False
    ranks: tuple[int, ...] = ()
    newcomers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """The node of a worker, which has no other, leaves as on SIGTERM, once the step before has been committed."""

    step: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Workers are held in `step` until all that is to happen outside by then has happened, and all are members.

    Attributes:
        number: of the fault that holds them.
    """

    step: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What happens in a run.

    Attributes:
        faults: what workers do to themselves.
        workers: that the job begins with.
        guests: so many of these, the last ones, have a node of their own.
        steps: of the run.
        starts, leaves, holds: what is done from outside, in order of steps.
    """

    faults: tuple[Fault, ...]
    workers: int
    guests: int
    steps: int
    starts: tuple[Start, ...] = ()
    leaves: tuple[Leave, ...] = ()
    holds: tuple[Hold, ...] = ()

    @property
    def strikes(self) -> tuple[Fault, ...]:
        """Faults that cost a worker."""
        return tuple(fault for fault in self.faults if fault.what is not What.HOLD)


def random_faults(seed: int, workers: int, steps: int, *, faults: int, copies: int = 2) -> Schedule:
    """Draw a schedule.

    At no time are more members lost than copies make up for: what is lost from the beginning of a step to its vote
    counts together. One member is never lost.

    Args:
        seed: of everything that is drawn. Over seeds in a row, faults go through all points of steps and recoveries.
        workers: that the job begins with, at least 2.
        steps: of the run, at least 4.
        faults: that are wanted at most.
        copies: of every shard on other members.
    """
    author = _Author(random.Random(f"{seed} {workers} {steps}"), seed, workers, steps, faults, copies)
    while author.step <= steps:
        author.write()
        author.step += 1
    return author.schedule()


@dataclass(slots=True)
class _Author:
    """Writes a schedule step by step.

    Attributes:
        here: ranks that are members for certain.
        missing: ranks that are lost, and nobody has been started for.
        coming: ranks for which a worker has been started that may be a member or not.
        hosted: ranks that are on a node of their own.
        leaving_until: last step at which a planned leave may be under way.
        recovering: this step begins with a recovery that no loss has caused.
        settled: members that have the state which the step begins from.
        in_doubt: somebody who comes may be lost on arrival, and then comes a step later.
    """

    chance: random.Random
    seed: int
    workers: int
    steps: int
    wanted: int
    copies: int
    step: int = 1
    here: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    coming: set[int] = field(default_factory=set)
    hosted: set[int] = field(default_factory=set)
    leaving_until: int = 0
    recovering: bool = False
    settled: int = 0
    in_doubt: bool = False
    struck: int = 0
    faults: list[Fault] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    leaves: list[Leave] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    faithful: bool = False
    guests: int = 0

    def __post_init__(self) -> None:
        self.here = set(range(self.workers))
        self.settled = self.workers
        self.guests = min(GUESTS_MAX, self.workers - 2)
        self.hosted = set(sorted(self.here)[self.workers - self.guests :])
        self.faithful = self.chance.random() < 0.6  # whoever is lost is replaced at once

    def schedule(self) -> Schedule:
        return Schedule(
            faults=tuple(self.faults),
            workers=self.workers,
            guests=self.guests,
            steps=self.steps,
            starts=tuple(self.starts),
            leaves=tuple(self.leaves),
            holds=tuple(self.holds),
        )

    # -- steps -------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Members that may be lost in this step."""
        leaving = 1 if self.step <= self.leaving_until else 0
        return max(0, min(self.copies, self.settled - 1) - leaving)

    @property
    def late(self) -> bool:
        """Too late for somebody who comes to be sure of a step."""
        return self.step > self.steps - 2

    def write(self) -> None:
        """Decide what happens in this step."""
        recovering, self.recovering = self.recovering, False
        before = len(self.here)
        self._decide(recovering)
        self.settled = min(before, len(self.here))

    def _decide(self, recovering: bool) -> None:
        draw = self.chance.random()
        if self.step == 1:
            if draw < START_SHARE and self.wanted:
                self._strike(recovering=True)
        elif self.coming and not self.late and (not self.room or self.chance.random() < GATHER_SHARE[recovering]):
            self._gather()
        elif not self.late and self._short():
            self._bring_back()
        elif not self.late and draw < LEAVE_SHARE and self._may_leave():
            self._leave()
        elif not self.late and draw < LEAVE_SHARE + JOIN_SHARE and self._may_join():
            self._join()
        elif self.room and self.struck < self.wanted:
            self._strike(recovering)

    def _short(self) -> bool:
        """Too few are left for much to happen."""
        if not self.missing:
            return False
        return len(self.here) == 1 or self.chance.random() < (0.5 if self.faithful else 0.15)

    def _may_leave(self) -> bool:
        return bool(self.hosted & self.here) and len(self.here) > 2 and self.step > self.leaving_until

    def _may_join(self) -> bool:
        """Only when no rank waits for its worker, which the newcomer could get in its stead."""
        return not (self.missing or self.coming) and len(self.here) < self.workers + EXTRA_MAX

    def _gather(self) -> None:
        """Hold members until all who were started are members, too."""
        self._hold()
        if self.in_doubt:
            self.in_doubt = False
            return
        self.here |= self.coming
        self.coming = set()

    def _hold(self) -> None:
        self.holds.append(Hold(step=self.step, number=len(self.faults)))
        self.faults.append(
            Fault(what=What.HOLD, ranks=tuple(sorted(self.here)), step=self.step, until=self.step, phase=str(HOLD_AT)),
        )

    def _bring_back(self) -> None:
        ranks = self.chance.sample(sorted(self.missing), self.chance.randint(1, len(self.missing)))
        self._start(ranks, after_loss=False)
        self._gather()
        self.recovering = True

    def _start(self, ranks: Sequence[int], *, after_loss: bool) -> None:
        self.starts.append(Start(step=self.step, ranks=tuple(sorted(ranks)), after_loss=after_loss))
        self.missing -= set(ranks)
        self.coming |= set(ranks)

    def _join(self) -> None:
        """A newcomer gets the lowest rank that is free."""
        self.starts.append(Start(step=self.step, newcomers=1))
        rank = next(rank for rank in range(len(self.here) + 1) if rank not in self.here)
        self.coming.add(rank)
        self.hosted.add(rank)
        self._gather()
        self.recovering = True

    def _leave(self) -> None:
        rank = self.chance.choice(sorted(self.hosted & self.here))
        self.leaves.append(Leave(step=self.step, rank=rank))
        self.here.remove(rank)
        self.hosted.remove(rank)
        self._hold()
        self.leaving_until = self.step + 2
        self.recovering = True

    # -- strikes -----------------------------------------------------------------------------------------------

    def _strike(self, recovering: bool) -> None:
        """One or two members are lost, in the step, or in a recovery that it begins with or that follows."""
        point = self._phase() if recovering and self.chance.random() < 0.6 else self._stage()
        pair = self.room > 1 and self.struck + 1 < self.wanted and self.chance.random() < PAIR_SHARE
        # a member that is lost between two steps may meet those that the step before was to lose
        pair = pair and point is not Stage.SNAPSHOT
        victims = self.chance.sample(sorted(self.here), 2 if pair else 1)
        self._add((victims[0],), point)
        if pair:
            again = self.chance.random()
            # in the recovery that the first causes, at the same point, or anywhere
            other = self._phase() if again < 0.55 else point if again < 0.75 else self._stage()
            self._add((victims[1],), other)
        self.here -= set(victims)
        self._replace(victims)

    def _replace(self, victims: Sequence[int]) -> None:
        self.missing |= set(victims)
        if self.late or not (self.faithful or self.chance.random() < 0.4):
            return
        ranks = victims if self.chance.random() < 0.8 else victims[:1]
        self._start(ranks, after_loss=True)
        if self.struck < self.wanted and self.chance.random() < ARRIVAL_SHARE:
            self._add((self.chance.choice(ranks),), self._phase(), newcomer=True)
            self.in_doubt = True

    def _add(self, ranks: tuple[int, ...], point: Stage | Phase, *, newcomer: bool = False) -> None:
        what = What.STOP if self.chance.random() < STOP_SHARE else What.KILL
        self.faults.append(
            Fault(
                what=what,
                ranks=ranks,
                step=self.step,
                until=None if newcomer else self.step,
                phase=str(point),
                nth=self.chance.randint(1, NTH_MAX) if point in (Stage.FORWARD, Stage.BACKWARD) else 1,
                newcomer=newcomer,
            )
        )
        self.struck += 1

    def _stage(self) -> Stage:
        return STAGES[(3 * self.seed + self.struck) % len(STAGES)]

    def _phase(self) -> Phase:
        return PHASES[(2 * self.seed + self.struck) % len(PHASES)]
