"""What one worker does in an attempt, as a list of operations: a pure function of the tasks, the order and who it is.

Names of operations follow torch.distributed.pipelining.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest

from elaswave.planner.plan import Task
from elaswave.planner.timetable import Op

TAG_BASE = 1 << 20
LEGS_MAX = 1 << 12


class Kind(StrEnum):
    """One operation."""

    RECV_ACTIVATION = "recv_f"
    FORWARD = "forward"
    SEND_ACTIVATION = "send_f"
    RECV_GRADIENT = "recv_b"
    BACKWARD_INPUT = "backward_input"
    SEND_GRADIENT = "send_b"
    BACKWARD_WEIGHT = "backward_weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of one worker.

    Attributes:
        kind: what.
        micro_batch: of which micro-batch.
        start, stop: of which layers.
        peer: the other worker of a message, -1 otherwise.
        tag: of a message: the same at both ends, different from all others of the attempt.
        missing: ranges of layers whose gradient of the micro-batch is wanted.
        weights: whether some of them are among these layers.
        at_once: gradients of weights follow at once: nothing is to be gained from putting them off.
    """

    kind: Kind
    micro_batch: int
    start: int
    stop: int
    peer: int = -1
    tag: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    weights: bool = False
    at_once: bool = False


def operations(tasks: Sequence[Task], order: Sequence[Op], member: int) -> tuple[Operation, ...]:
    """Add the messages to what the timetable says.

    Args:
        tasks: of the attempt.
        order: what this worker computes, as the timetable has it.
        member: its index in the plan.
    """
    by_id = {task.micro_batch: task for task in tasks}
    found: list[Operation] = []
    for op in order:
        task = by_id[op.micro_batch]
        found += _lower(task, op)
        assert task.legs[op.leg].member == member
    return tuple(
        replace(first, at_once=_belong_together(first, second)) for first, second in zip_longest(found, found[1:])
    )


def _belong_together(first: Operation, second: Operation | None) -> bool:
    """Whether these are the two halves of one backward."""
    return (
        second is not None
        and (first.kind, second.kind) == (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
        and (first.micro_batch, first.start) == (second.micro_batch, second.start)
    )


def _lower(task: Task, op: Op) -> list[Operation]:
    """One operation of the timetable with the messages before and after it."""
    legs, floor = task.legs, task.missing[0][0]

    def message(kind: Kind, other: int, edge: int, back: bool) -> Operation:
        tag = TAG_BASE + ((task.micro_batch * LEGS_MAX + edge) * 2 + back) * 2
        return Operation(
            kind=kind, micro_batch=task.micro_batch, start=op.start, stop=op.stop, peer=legs[other].member, tag=tag
        )

    def compute(kind: Kind) -> Operation:
        weights = any(low < op.stop and high > op.start for low, high in task.missing)
        return Operation(
            kind=kind,
            micro_batch=task.micro_batch,
            start=op.start,
            stop=op.stop,
            missing=task.missing,
            weights=weights,
        )

    last = op.leg == len(legs) - 1
    if op.kind == "W":
        return [compute(Kind.BACKWARD_WEIGHT)]
    if op.kind == "F":
        before = [message(Kind.RECV_ACTIVATION, op.leg - 1, op.leg - 1, False)] if op.leg else []
        after = [] if last else [message(Kind.SEND_ACTIVATION, op.leg + 1, op.leg, False)]
        return [*before, compute(Kind.FORWARD), *after]
    before = [] if last else [message(Kind.RECV_GRADIENT, op.leg + 1, op.leg, True)]
    wanted = op.leg > 0 and floor < op.start
    after = [message(Kind.SEND_GRADIENT, op.leg - 1, op.leg - 1, True)] if wanted else []
    return [*before, compute(Kind.BACKWARD_INPUT), *after]
