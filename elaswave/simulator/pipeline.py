"""How long the steps of a plan take: the workers' own lists of operations, run in their order under a virtual clock.

The order is the one that every worker derives (`elaswave.planner.timetable`). Here messages take time, and a step ends
with the reduction of gradients and the optimizer. Gradients of inputs are on their way before those of weights are
computed under every schedule, as workers do it; so without a split backward a step may end before its timetable does.
Times are in units of the profile's costs: a layer's forward takes its cost, and so does each half of its backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from elaswave.config import Config, Parallelism
from elaswave.planner.plan import Plan, Task
from elaswave.planner.profile import Profile
from elaswave.planner.timetable import Op, of_plan

Ops = Sequence[Sequence[Op]]
"""Per member its operations in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a cluster takes besides computing, in units of the profile's costs.

    Attributes:
        message: from the end of an operation until what it gives is at another worker.
        update: from the last gradient to the new weights: reduction, optimizer, gathering.
    """

    message: float = 0.0
    update: float = 0.0


IDEAL = Machine()
"""Messages and updates take no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps of a plan, one after another, in the long run.

    Attributes:
        period: of a step.
        busy: per member the share of the period in which it computes.
        held: the most that any member holds at once, in layers of micro-batches whose weights' gradient is not done.
    """

    period: float
    busy: tuple[float, ...]
    held: int


def steps(
    plan: Plan,
    profile: Profile,
    parallelism: Parallelism,
    machine: Machine = IDEAL,
    *,
    staggered: bool = False,
    repeats: int = 3,
) -> Steps:
    """Run steps of a plan under a virtual clock.

    Args:
        plan: from any planner.
        profile: what layers cost.
        parallelism: the schedule, and the number of pieces of a stage.
        machine: what else takes time.
        staggered: members begin the next step when those with whom they share gradients have ended this one; all
            members, otherwise.
        repeats: steps to run where they overlap.
    """
    found = of_plan(plan, plan.tasks, profile.costs, parallelism.schedule, parallelism.virtual_stages)
    total = [0.0]
    for cost in profile.costs:
        total.append(total[-1] + cost)
    run = _Run(plan.tasks, found.ops, total, machine.message)
    begins, last = [0.0] * len(plan.worker_ids), [0.0]
    for _ in range(repeats if staggered else 1):
        ends = run.ends(begins)
        last.append(max(ends) + machine.update)
        begins = [end + machine.update for end in (after_sharing(plan, ends) if staggered else [max(ends)] * len(ends))]
    period = last[-1] - last[-2]
    return Steps(period=period, busy=tuple(busy / period for busy in found.busy), held=_most_held(found.ops))


def throughput(
    plan: Plan,
    config: Config,
    profile: Profile,
    machine: Machine = IDEAL,
    *,
    staggered: bool = False,
) -> float:
    """Samples per unit of the profile's costs."""
    found = steps(plan, profile, config.parallelism, machine, staggered=staggered)
    return config.training.train_batch_size / found.period


def moved(before: Plan, after: Plan, profile: Profile) -> tuple[int, ...]:
    """Per member of `after` the elements of all units that it holds, and did not hold in `before`."""
    units_of: dict[int, list[int]] = {}
    for unit, users in enumerate(profile.users):
        for layer in users:
            units_of.setdefault(layer, []).append(unit)

    def units(layers: Sequence[int]) -> set[int]:
        return {unit for layer in layers for unit in units_of.get(layer, ())}

    had = dict(zip(before.worker_ids, before.layers, strict=True))
    return tuple(
        sum(profile.unit_elements[unit] for unit in units(layers) - units(had.get(worker_id, ())))
        for worker_id, layers in zip(after.worker_ids, after.layers, strict=True)
    )


class _Run:
    """One step of all members, in the order of their lists."""

    def __init__(self, tasks: Sequence[Task], ops: Ops, total: Sequence[float], message: float) -> None:
        self._ops, self._total, self._message = ops, total, message
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        count = 0
        for task in tasks:
            self._first[task.micro_batch] = count
            count += len(task.legs)
            self._last[task.micro_batch] = count - 1
        self._count = count

    def ends(self, begins: Sequence[float]) -> list[float]:
        """When each member ends, if it may begin at these times."""
        count, message, total = self._count, self._message, self._total
        done: list[float | None] = [None] * (2 * count)  # when the forward of each leg has ended; its inputs' backward
        waiting: dict[int, int] = {}
        now, at = list(begins), [0] * len(begins)
        awake = list(range(len(begins)))
        while awake:
            member = awake.pop()
            ops, time, place = self._ops[member], now[member], at[member]
            while place < len(ops):
                op = ops[place]
                first = self._first[op.micro_batch]
                leg = first + op.leg
                if op.kind == "F":
                    needs = leg - 1 if leg > first else -1
                elif op.kind == "I":
                    needs = leg + 1 + count if leg < self._last[op.micro_batch] else -1
                else:
                    needs = -1
                gives = leg if op.kind == "F" else leg + count if op.kind == "I" else -1
                if needs >= 0:
                    ready = done[needs]
                    if ready is None:
                        waiting[needs] = member
                        break
                    time = max(time, ready + message)
                time += total[op.stop] - total[op.start]
                if gives >= 0:
                    done[gives] = time
                    if gives in waiting:
                        awake.append(waiting.pop(gives))
                place += 1
            now[member], at[member] = time, place
        assert all(place == len(ops) for place, ops in zip(at, self._ops, strict=True)), "all members wait"
        return now


def after_sharing(plan: Plan, ends: Sequence[float]) -> list[float]:
    """When all have ended who share a gradient with each member."""
    together = list(ends)
    for bucket in plan.buckets:
        latest = max((ends[member] for member in bucket.members), default=0.0)
        for member in bucket.members:
            together[member] = max(together[member], latest)
    return together


def _most_held(ops: Ops) -> int:
    most = 0
    for mine in ops:
        held = 0
        for op in mine:
            held += (op.stop - op.start) * ((op.kind == "F") - (op.kind == "W"))
            most = max(most, held)
    return most
