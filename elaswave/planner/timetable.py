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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from elaswave.config import Schedule
from elaswave.planner.dataflow import Ranges, passes
from elaswave.planner.plan import Leg, Task

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


Order = tuple[int, int, int]
"""What goes first: by group of micro-batches, then round through the stages, then place among the tasks."""


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
    as it needs on a full grid to stay busy; from then on each backward makes room for one more. `1f1b-split`: `I` goes
    before everything, since others wait for it, and makes room; `W` runs when nothing else may. A leg is held until its
    `W`, so that late stages hold more than under `1f1b`, but none more than the stage that holds most there (the rule
    of ZB-H1 in the zero bubble paper).

    Args:
        tasks: what is to be computed: a whole step, or what is missing of one.
        stages: members of each stage.
        costs: of each layer, all positive.
        num_members: of the plan; one without a leg gets an empty list.
        virtual_stages: chunks of each stage.
    """
    unit = 2.0 ** (math.frexp(max(costs))[1] - DIGITS)
    works = _works(tasks, stages, [max(1, round(cost / unit)) for cost in costs], virtual_stages)
    caps = _caps(works, stages, num_members, virtual_stages) if schedule is not Schedule.GPIPE else None
    pipeline = _Pipeline(works, num_members, caps, split=schedule is Schedule.SPLIT, in_order=virtual_stages > 1)
    finish = pipeline.run()
    return Timetable(
        ops=tuple(tuple(member.ops) for member in pipeline.members),
        finish=finish * unit,
        busy=tuple(member.busy * unit for member in pipeline.members),
    )


@dataclass(slots=True, kw_only=True)
class _Work:
    """A leg that is to be computed.

    Attributes:
        times: ticks of `F`, `I` and `W`; 0 for what is not wanted.
        forward: what goes first of forwards.
        backward: what goes first of backwards, which undo the rounds of a group from the last.
    """

    micro_batch: int
    leg: int
    part: Leg
    times: tuple[int, int, int]
    forward: Order
    backward: Order
    is_last: bool


def _works(
    tasks: Sequence[Task], stages: Sequence[Sequence[int]], ticks: Sequence[int], virtual_stages: int
) -> list[_Work]:
    """All legs, those of one task side by side.

    A round ends where the way comes back to an earlier stage. Micro-batches go through their rounds in groups that are
    just large enough to keep all stages busy.
    """
    stage_of = {member: stage for stage, members in enumerate(stages) for member in members}
    group_size = sum(map(bool, stages)) * max(map(len, stages)) if virtual_stages > 1 else max(len(tasks), 1)
    total = list(accumulate(ticks, initial=0))
    known: dict[tuple[int, int, Ranges], tuple[int, int, int]] = {}
    works: list[_Work] = []
    for place, task in enumerate(tasks):
        group, lap, before = place // group_size, 0, -1
        for index, leg in enumerate(task.legs):
            lap, before = lap + (stage_of[leg.member] <= before), stage_of[leg.member]
            key = (leg.start, leg.stop, task.missing)
            if key not in known:
                forward, inputs, weights = passes(leg.start, leg.stop, task.missing, total)
                known[key] = (int(forward), int(inputs), int(weights))
            works.append(
                _Work(
                    micro_batch=task.micro_batch,
                    leg=index,
                    part=leg,
                    times=known[key],
                    forward=(group, lap, place),
                    backward=(group, -lap, place),
                    is_last=index == len(task.legs) - 1,
                )
            )
    return works


def _caps(works: Sequence[_Work], stages: Sequence[Sequence[int]], num_members: int, virtual_stages: int) -> list[int]:
    """How many legs of each member may wait at once: as many as on a full grid, scaled to the members of its stage.

    And at least one more than a group has before its last round. Of all forwards that have not begun, the first in
    order is then never kept waiting for ever: whatever has passed its last round drains, and the rest leaves room.
    """
    live = [members for members in stages if members]
    depth, largest = len(live), max(map(len, live))
    caps = [1] * num_members
    for stage, members in enumerate(live):
        warmup = depth - stage
        if virtual_stages > 1:
            warmup = (depth - stage - 1) * 2 + (virtual_stages - 1) * depth + 1
        for member in members:
            caps[member] = max(1, math.ceil(warmup * largest / len(members)))
    last_lap: dict[int, int] = {}
    for work in works:
        group, lap, _ = work.forward
        last_lap[group] = max(last_lap.get(group, 0), lap)
    early = Counter(
        (work.part.member, work.forward[0]) for work in works if work.forward[1] < last_lap[work.forward[0]]
    )
    for (member, _), count in early.items():
        caps[member] = max(caps[member], count + 1)
    return caps


@dataclass(slots=True, kw_only=True)
class _Member:
    """One worker in the simulation.

    Attributes:
        forwards: all forwards that it has not begun, last first.
        ready: heaps of what it may begin: what goes first, and the index of the work.
        waiting: legs between the begin of their forward and the end of their `I`.
        held: legs between the begin of their forward and the end of their backward.
        running: kind and index of the work in hand.
    """

    forwards: list[Order]
    ready: dict[OpKind, list[tuple[Order, int]]] = field(default_factory=lambda: {"F": [], "I": [], "W": []})
    waiting: int = 0
    held: int = 0
    running: tuple[OpKind, int] | None = None
    ops: list[Op] = field(default_factory=list)
    busy: int = 0


class _Pipeline:
    """The members at work, from event to event."""

    def __init__(
        self, works: Sequence[_Work], num_members: int, caps: Sequence[int] | None, *, split: bool, in_order: bool
    ) -> None:
        """
        Args:
            caps: how many legs may wait for their `I` on each member, and the largest how many any may hold; None for
                any number, and all forwards first.
            split: `W` apart from `I`.
            in_order: a member begins its forwards strictly in order, even if a later one is ready before.
        """
        self._works, self._caps, self._split, self._in_order = works, caps, split, in_order
        self._most = max(caps, default=0) if caps else 0
        forwards: list[list[Order]] = [[] for _ in range(num_members)]
        for work in works:
            forwards[work.part.member].append(work.forward)
        self.members = [_Member(forwards=sorted(orders, reverse=True)) for orders in forwards]

    def run(self) -> int:
        """Do all work; returns the ticks it takes."""
        for index, work in enumerate(self._works):
            if work.leg == 0:
                self._offer("F", index)
        now, woken = 0, set(range(len(self.members)))
        ends: list[tuple[int, int]] = []  # when each running member ends what it runs
        while True:
            for index in woken:
                if self.members[index].running is None and (kind := self._choose(index)):
                    heapq.heappush(ends, (now + self._begin(self.members[index], kind), index))
            if not ends:
                break
            now, woken = ends[0][0], set()
            while ends and ends[0][0] == now:
                index = heapq.heappop(ends)[1]
                woken.add(index)
                woken.update(self._end(self.members[index]))
        assert not any(member.forwards or member.held for member in self.members), "the pipeline has come to a halt"
        return now

    def _choose(self, index: int) -> OpKind | None:
        """What an idle member does now, if it can do anything."""
        member = self.members[index]
        ready = member.ready
        in_turn = bool(ready["F"]) and not (self._in_order and ready["F"][0][0] != member.forwards[-1])
        if self._caps is None:
            return "F" if in_turn else "I" if ready["I"] and not member.forwards else "W" if ready["W"] else None
        if in_turn and member.waiting < self._caps[index] and member.held < self._most:
            return "F"
        return "I" if ready["I"] else "W" if ready["W"] else None

    def _begin(self, member: _Member, kind: OpKind) -> int:
        """Take up what goes first of a kind; returns the ticks it takes."""
        _, index = heapq.heappop(member.ready[kind])
        work = self._works[index]
        member.running = (kind, index)
        member.ops.append(_op(kind, work))
        forward, inputs, weights = work.times
        duration = {"F": forward, "I": inputs, "W": weights}[kind]
        if kind == "F":
            member.forwards.pop()  # where forwards are not begun in order, only their number matters
            member.waiting += inputs > 0
            member.held += inputs > 0
        elif kind == "I" and weights and not self._split:
            member.ops.append(_op("W", work))
            duration += weights
        member.busy += duration
        return duration

    def _end(self, member: _Member) -> list[int]:
        """Let go of what was running; returns the members that have got something to do."""
        assert member.running is not None
        kind, index = member.running
        work = self._works[index]
        member.running = None
        _, inputs, weights = work.times
        if kind == "F":
            if not work.is_last:
                return [self._offer("F", index + 1)]
            return [self._offer("I", index)] if inputs else []
        member.waiting -= kind == "I"
        if kind == "I" and weights and self._split:
            self._offer("W", index)
        else:
            member.held -= 1
        if kind == "I" and work.leg and self._works[index - 1].times[1]:
            return [self._offer("I", index - 1)]
        return []

    def _offer(self, kind: OpKind, index: int) -> int:
        """Something has become ready; returns whose it is."""
        work = self._works[index]
        order = work.forward if kind == "F" else work.backward
        heapq.heappush(self.members[work.part.member].ready[kind], (order, index))
        return work.part.member


def _op(kind: OpKind, work: _Work) -> Op:
    return Op(kind=kind, micro_batch=work.micro_batch, leg=work.leg, start=work.part.start, stop=work.part.stop)
