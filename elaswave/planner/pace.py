"""How long a step takes when members are slower or faster than its timetable was made for.

Every member runs its list of operations as it stands and waits where it must, so the step ends with the longest path
through the lists and the ways of the micro-batches. It never ends earlier when anyone is slower.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import accumulate

from elaswave.config import Schedule
from elaswave.planner.dataflow import passes
from elaswave.planner.plan import Task
from elaswave.planner.timetable import Op, OpKind

Key = tuple[OpKind, int, int]
"""Kind, micro-batch and index of the leg."""


def finish(
    tasks: Sequence[Task], ops: Sequence[Sequence[Op]], costs: Sequence[float], schedule: Schedule
) -> Callable[[Sequence[float]], float]:
    """When a step ends, in units of the costs, as a function of how many times as long each member takes.

    Args:
        tasks: what is computed.
        ops: per member its operations in order.
        costs: of each layer; forward, `I` and `W` of a layer take its cost each.
        schedule: of the timetable; unless it splits the backward, others wait for `I` and `W` together.

    Raises:
        ValueError: the lists wait for each other.
    """
    there = {_key(op) for mine in ops for op in mine}
    whole = schedule is not Schedule.SPLIT
    waits_for = {_key(op): [key for key in _before(op, there, whole) if key in there] for mine in ops for op in mine}
    order = _runnable(ops, waits_for)
    total = list(accumulate(costs, initial=0.0))
    missing = {task.micro_batch: task.missing for task in tasks}
    place = {_key(op): number for number, (_, op) in enumerate(order)}
    rows: list[tuple[int, float, tuple[int, ...]]] = []
    for member, op in order:
        forward, inputs, weights = passes(op.start, op.stop, missing[op.micro_batch], total)
        amount = {"F": forward, "I": inputs, "W": weights}[op.kind]
        rows.append((member, amount, tuple(place[key] for key in waits_for[_key(op)])))

    def ends(slowdowns: Sequence[float]) -> float:
        free, done = [0.0] * len(ops), [0.0] * len(rows)
        for number, (member, amount, waits) in enumerate(rows):
            begin = max([free[member], *(done[other] for other in waits)])
            done[number] = free[member] = begin + amount * slowdowns[member]
        return max(free, default=0.0)

    return ends


def _runnable(ops: Sequence[Sequence[Op]], waits_for: Mapping[Key, Sequence[Key]]) -> list[tuple[int, Op]]:
    """All operations with their members, each behind everything that it waits for."""
    done: set[Key] = set()
    order: list[tuple[int, Op]] = []
    position = [0] * len(ops)
    progress = True
    while progress:
        progress = False
        for member, mine in enumerate(ops):
            while position[member] < len(mine) and done.issuperset(waits_for[_key(mine[position[member]])]):
                op = mine[position[member]]
                done.add(_key(op))
                order.append((member, op))
                position[member] += 1
                progress = True
    if len(order) != len(waits_for):
        raise ValueError(f"{len(waits_for) - len(order)} operations wait for each other")
    return order


def _key(op: Op) -> Key:
    return op.kind, op.micro_batch, op.leg


def _before(op: Op, there: Container[Key], whole: bool) -> list[Key]:
    """What an operation waits for, if that is done at all; `whole` if backwards are passed on as one."""
    if op.kind == "F":
        return [("F", op.micro_batch, op.leg - 1)]
    if op.kind == "W":
        return [("I", op.micro_batch, op.leg)]
    weights: Key = ("W", op.micro_batch, op.leg + 1)
    behind: Key = weights if whole and weights in there else ("I", op.micro_batch, op.leg + 1)
    return [("F", op.micro_batch, op.leg), behind]
