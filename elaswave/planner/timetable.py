"""In which order each member runs its forwards and backwards: found by simulating the pipeline once.

Known schedules are orders for full grids of equal stages. Here whoever is idle begins the most urgent operation that is
ready (list scheduling), under the rules of a schedule; on a full grid that gives its known order, and on what is left
of one after a fault an order as good. Each member then runs its list as it stands and waits where it must. That never
deadlocks: in the simulation every operation began after all that it waits for, so no cycle of waiting exists.

Schedules: GPipe (https://arxiv.org/abs/1811.06965), 1F1B and interleaved 1F1B (PipeDream-Flush as in Megatron-LM,
https://arxiv.org/abs/2104.04473), backward in two halves (zero bubble, https://arxiv.org/abs/2401.10241).
"""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from elaswave.config import Schedule
from elaswave.planner.dataflow import Ranges, passes
from elaswave.planner.plan import Plan, Task

DIGITS = 24
"""Binary digits of the costliest layer's time. Times are integers, so that equal ones are equal however they add up."""

OpKind = Literal["F", "I", "W"]
"""Forward; backward for inputs, which the worker before waits for; backward for weights, which nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation of a member on one of its legs.

    Attributes:
        kind: `F`, `I` or `W`.
        micro_batch: its id.
        leg: index in the legs of the micro-batch's task.
        start: first layer of the leg.
        stop: behind its last layer.
    """

    kind: OpKind
    micro_batch: int
    leg: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """What every member does in one attempt, and how long it would take if messages took no time.

    Attributes:
        ops: per member its operations in order; `F` of a last leg includes the loss. A leg has an `I` if a gradient
            is missing in it or below it, and a `W` if one is missing in it.
        finish: time of the whole, in units of the costs; forward, `I` and `W` of a layer take its cost each.
        busy: per member the time in which it computes.
    """

    ops: tuple[tuple[Op, ...], ...]
    finish: float
    busy: tuple[float, ...]


def timetable(
    tasks: Sequence[Task],
    stages: Sequence[Sequence[int]],
    costs: Sequence[float],
    schedule: Schedule,
    num_members: int,
    virtual_stages: int = 1,
) -> Timetable:
    """Simulate the pipeline under a schedule.

    `gpipe`: a member's backwards follow all its forwards. `1f1b`: a member begins forwards until it holds as many legs
    as it needs on a full grid to stay busy; from then on each backward makes room for one more. `1f1b-split`: the same
    with `I` in place of the backward, and `W` runs when nothing else may. A leg is held until its `W`, so that late
    stages hold more than under `1f1b`, but no more than the first. On a full grid that is ZB-H1 of the zero bubble
    paper, and as fast.

    Args:
        tasks: what is to be computed: a whole step, or what is missing of one.
        stages: members of each stage.
        costs: of each layer, all positive.
        num_members: of the plan; one without a leg gets an empty list.
        virtual_stages: chunks of each stage.
    """
    pipeline, unit = _run(tasks, stages, costs, schedule, virtual_stages)
    ops: list[tuple[Op, ...]] = [()] * num_members
    busy = [0.0] * num_members
    for member, row in zip(pipeline.names, pipeline.rows, strict=True):
        ops[member] = tuple(_op(kind, pipeline.works[index], tasks) for kind, index in row)
        busy[member] = pipeline.busy(row) * unit
    return Timetable(ops=tuple(ops), finish=pipeline.now * unit, busy=tuple(busy))


def finish(
    tasks: Sequence[Task],
    stages: Sequence[Sequence[int]],
    costs: Sequence[float],
    schedule: Schedule,
    virtual_stages: int = 1,
) -> float:
    """When all has ended; see `timetable`, of which it is a part."""
    pipeline, unit = _run(tasks, stages, costs, schedule, virtual_stages)
    return pipeline.now * unit


def of_plan(
    plan: Plan,
    tasks: Sequence[Task],
    costs: Sequence[float],
    schedule: Schedule,
    virtual_stages: int = 1,
    member: int | None = None,
) -> Timetable:
    """The timetable of some tasks of a plan: every team has its own, as nobody in it waits for anyone outside.

    Args:
        member: whose operations are asked for: only those of its team are found; None for all.
    """
    team_of = plan.team_of()
    mine: list[list[Task]] = [[] for _ in plan.teams]
    for task in tasks:
        mine[team_of[task.legs[0].member]].append(task)
    ops: list[tuple[Op, ...]] = [()] * len(plan.worker_ids)
    busy, finish = [0.0] * len(plan.worker_ids), 0.0
    wanted = range(len(plan.teams)) if member is None else [team_of[member]] if member in team_of else []
    stages = plan.stages_by_team()
    for team in wanted:
        found = timetable(mine[team], stages[team], costs, schedule, len(plan.worker_ids), virtual_stages)
        finish = max(finish, found.finish)
        for index in plan.teams[team]:
            ops[index], busy[index] = found.ops[index], found.busy[index]
    return Timetable(ops=tuple(ops), finish=finish, busy=tuple(busy))


def _run(
    tasks: Sequence[Task],
    stages: Sequence[Sequence[int]],
    costs: Sequence[float],
    schedule: Schedule,
    virtual_stages: int,
) -> tuple["_Pipeline", float]:
    """The pipeline at its end, and the length of a tick in units of the costs."""
    unit = 2.0 ** (math.frexp(max(costs))[1] - DIGITS)
    works = _works(tasks, stages, [max(1, round(cost / unit)) for cost in costs], virtual_stages)
    names = sorted(member for members in stages for member in members)
    caps = _caps(works, stages, virtual_stages) if schedule is not Schedule.GPIPE else None
    pipeline = _Pipeline(works, names, caps, split=schedule is Schedule.SPLIT, in_order=virtual_stages > 1)
    pipeline.run()
    return pipeline, unit


@dataclass(slots=True)
class _Work:
    """A leg that is to be computed.

    Attributes:
        task: index of its task.
        leg: index in the task.
        member: who computes it.
        forward: place of its forward among all forwards: by group of micro-batches, then round through the stages.
        backward: place of its backward, which undoes the rounds of a group from the last.
        times: ticks of `F`, `I` and `W`; 0 for what is not wanted.
        is_last: of its task.
        early: it is of a round before the last of its group.
        group: of micro-batches that go through their rounds together.
    """

    task: int
    leg: int
    member: int
    forward: int
    backward: int
    times: tuple[int, int, int]
    is_last: bool
    early: bool
    group: int


def _works(
    tasks: Sequence[Task], stages: Sequence[Sequence[int]], ticks: Sequence[int], virtual_stages: int
) -> list[_Work]:
    """All legs, those of one task side by side.

    A round ends where the way comes back to an earlier stage. Micro-batches go through their rounds in groups that are
    just large enough to keep all stages busy.
    """
    stage_of = {member: stage for stage, members in enumerate(stages) for member in members}
    count = max(len(tasks), 1)
    group_size = sum(map(bool, stages)) * max(map(len, stages)) if virtual_stages > 1 else count
    total = list(accumulate(ticks, initial=0))
    known: dict[tuple[int, int, Ranges], tuple[int, int, int]] = {}
    laps: list[list[int]] = []
    for task in tasks:
        lap, before, mine = 0, -1, []
        for leg in task.legs:
            stage = stage_of[leg.member]
            lap, before = lap + (stage <= before), stage
            mine.append(lap)
        laps.append(mine)
    most = 1 + max((mine[-1] for mine in laps), default=0)
    last = [max(mine[-1] for mine in laps[at : at + group_size]) for at in range(0, len(laps), group_size)]
    works: list[_Work] = []
    for place, (task, mine) in enumerate(zip(tasks, laps, strict=True)):
        group = place // group_size
        for index, (leg, lap) in enumerate(zip(task.legs, mine, strict=True)):
            key = (leg.start, leg.stop, task.missing)
            times = known.get(key)
            if times is None:
                forward, inputs, weights = passes(leg.start, leg.stop, task.missing, total)
                times = known[key] = (int(forward), int(inputs), int(weights))
            works.append(
                _Work(
                    place,
                    index,
                    leg.member,
                    (group * most + lap) * count + place,
                    (group * most + most - 1 - lap) * count + place,
                    times,
                    index == len(task.legs) - 1,
                    lap < last[group],
                    group,
                )
            )
    return works


def _caps(works: Sequence[_Work], stages: Sequence[Sequence[int]], virtual_stages: int) -> dict[int, tuple[int, int]]:
    """How many legs of each member may wait for their `I`, and how many it may hold until their `W`.

    As many as on a full grid, scaled to the members of its stage; until `W` every stage may hold as many as the first.
    And at least one more than a group has before its last round. Of all forwards that have not begun, the first in
    order is then never kept waiting for ever: whatever has passed its last round drains, and the rest leaves room.
    """
    live = [members for members in stages if members]
    depth, largest = len(live), max(map(len, live))
    early = Counter((work.member, work.group) for work in works if work.early)
    least: dict[int, int] = {}
    for (member, _), count in early.items():
        least[member] = max(least.get(member, 0), count + 1)

    def room(stage: int, members: int) -> int:
        warmup = depth - stage if virtual_stages == 1 else (depth - stage - 1) * 2 + (virtual_stages - 1) * depth + 1
        return max(1, math.ceil(warmup * largest / members))

    return {
        member: (
            max(room(stage, len(members)), least.get(member, 0)),
            max(room(0, len(members)), least.get(member, 0)),
        )
        for stage, members in enumerate(live)
        for member in members
    }


class _Pipeline:
    """The members at work, from event to event.

    Attributes:
        works: all there is to do.
        names: of the members; in here they are numbers from 0 on.
        rows: per member what it has begun, in order: kind and index of the work.
        now: ticks since the begin.
    """

    def __init__(
        self,
        works: Sequence[_Work],
        names: Sequence[int],
        caps: Mapping[int, tuple[int, int]] | None,
        *,
        split: bool,
        in_order: bool,
    ) -> None:
        """
        Args:
            caps: how many legs may wait for their `I` on each member, and how many it may hold until their `W`; None
                for any number, and all forwards first.
            split: `W` apart from `I`.
            in_order: a member begins its forwards strictly in order, even if a later one is ready before.
        """
        self.works, self.names, self.now = works, names, 0
        self.rows: list[list[tuple[OpKind, int]]] = [[] for _ in names]
        place = {member: number for number, member in enumerate(names)}
        self._member = [place[work.member] for work in works]
        self._caps = None if caps is None else [caps[member][0] for member in names]
        self._most = [] if caps is None else [caps[member][1] for member in names]
        self._split, self._in_order = split, in_order
        self._ready: dict[OpKind, list[list[tuple[int, int]]]] = {kind: [[] for _ in names] for kind in ("F", "I", "W")}
        self._waiting, self._held, self._running = [0] * len(names), [0] * len(names), [False] * len(names)
        self._forwards: list[list[int]] = [[] for _ in names]  # all that have not begun, last first
        for member, work in zip(self._member, works, strict=True):
            self._forwards[member].append(work.forward)
        for orders in self._forwards:
            orders.sort(reverse=True)

    def run(self) -> None:
        """Do all work."""
        for index, work in enumerate(self.works):
            if work.leg == 0:
                self._offer("F", index)
        ends: list[tuple[int, int]] = []  # when each running member ends what it runs
        woken = set(range(len(self.names)))
        while True:
            for member in woken:
                if not self._running[member] and (kind := self._choose(member)):
                    heapq.heappush(ends, (self.now + self._begin(member, kind), member))
            if not ends:
                break
            self.now, woken = ends[0][0], set()
            while ends and ends[0][0] == self.now:
                member = heapq.heappop(ends)[1]
                woken.add(member)
                other = self._end(member)
                if other is not None:
                    woken.add(other)
        assert not any(self._forwards), "the pipeline has come to a halt"
        assert not any(self._held), "something has not been computed backward"

    def busy(self, row: Sequence[tuple[OpKind, int]]) -> int:
        """Ticks that these operations take."""
        return sum(self.works[index].times["FIW".index(kind)] for kind, index in row)

    def _choose(self, member: int) -> OpKind | None:
        """What an idle member does now, if it can do anything."""
        ready = self._ready["F"][member]
        in_turn = bool(ready) and not (self._in_order and ready[0][0] != self._forwards[member][-1])
        if self._caps is None:
            if in_turn:
                return "F"
            if self._ready["I"][member] and not self._forwards[member]:
                return "I"
        else:
            if in_turn and self._waiting[member] < self._caps[member] and self._held[member] < self._most[member]:
                return "F"
            if self._ready["I"][member]:
                return "I"
        return "W" if self._ready["W"][member] else None

    def _begin(self, member: int, kind: OpKind) -> int:
        """Take up what goes first of a kind; returns the ticks it takes."""
        index = heapq.heappop(self._ready[kind][member])[1]
        row = self.rows[member]
        row.append((kind, index))
        self._running[member] = True
        forward, inputs, weights = self.works[index].times
        if kind == "F":
            self._forwards[member].pop()  # where forwards are not begun in order, only their number matters
            if inputs:
                self._waiting[member] += 1
                self._held[member] += 1
            return forward
        if kind == "W":
            return weights
        if weights and not self._split:
            row.append(("W", index))
            return inputs + weights
        return inputs

    def _end(self, member: int) -> int | None:
        """Let go of what was running; returns who has got something to do, if anyone."""
        kind, index = self.rows[member][-1]
        work = self.works[index]
        self._running[member] = False
        if kind == "F":
            if not work.is_last:
                return self._offer("F", index + 1)
            return self._offer("I", index) if work.times[1] else None
        if kind == "W" and self._split:
            self._held[member] -= 1
            return None
        self._waiting[member] -= 1
        if work.times[2] and self._split:
            self._offer("W", index)
        else:
            self._held[member] -= 1
        if work.leg and self.works[index - 1].times[1]:
            return self._offer("I", index - 1)
        return None

    def _offer(self, kind: OpKind, index: int) -> int:
        """Something has become ready; returns whose it is."""
        work, member = self.works[index], self._member[index]
        heapq.heappush(self._ready[kind][member], (work.forward if kind == "F" else work.backward, index))
        return member


def _op(kind: OpKind, work: _Work, tasks: Sequence[Task]) -> Op:
    task = tasks[work.task]
    leg = task.legs[work.leg]
    return Op(kind=kind, micro_batch=task.micro_batch, leg=work.leg, start=leg.start, stop=leg.stop)
