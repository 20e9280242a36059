"""Views, models and settings to plan for, and a check that lists of operations can be run as they stand."""

from collections.abc import Callable, Iterable, Sequence

from hypothesis import strategies as st

from elaswave.config import Config, Schedule, from_mapping
from elaswave.planner.plan import Plan, Task
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import Op, OpKind
from elaswave.topology import Member, View

Key = tuple[OpKind, int, int]
"""Kind, micro-batch and index of the leg."""


def view_of(ranks: Iterable[int], epoch: int = 2) -> View:
    """A view of these ranks, four to a node."""
    members = [
        Member(rank=rank, worker_id=f"w{rank}", node_id=f"n{rank // 4}", host_id="h", pid=1) for rank in sorted(ranks)
    ]
    return View(epoch=epoch, members=tuple(members), reason="")


def model_of(costs: Sequence[float], ties: Sequence[Sequence[int]] = ()) -> Profile:
    """A model with layers of these costs, and a unit for each tie."""
    alone = [(layer,) for layer in range(len(costs))]
    users = (*alone, *(tuple(sorted(set(tie))) for tie in ties))
    return Profile(costs=tuple(costs), unit_elements=tuple(range(len(users))), users=users)


def config_of(micro_batches: int = 8, **parallelism: object) -> Config:
    """Settings with so many micro-batches per step."""
    training = {"train_batch_size": micro_batches, "micro_batch_size": 1}
    return from_mapping({"training": training, "parallelism": parallelism})


def plan_of(ranks: Iterable[int], costs: Sequence[float], micro_batches: int = 8, **parallelism: object) -> Plan:
    """The plan for these ranks and costs."""
    return make_plan(config_of(micro_batches, **parallelism), None, view_of(ranks), model_of(costs))


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Config, View, Profile]:
    """Any pipeline that may be left of any grid, of any model that can be cut for it."""
    stages = draw(st.integers(1, 4))
    virtual_stages = draw(st.integers(1, 3)) if stages > 1 else 1
    config = config_of(
        draw(st.integers(1, 9)),
        stages=stages,
        virtual_stages=virtual_stages,
        fluid=stages > 1 and draw(st.booleans()),
        schedule=draw(st.sampled_from(Schedule)),
    )
    chunks = stages * virtual_stages
    costs = draw(st.lists(st.sampled_from([1.0, 1.0, 1.5, 3.0, 0.1]), min_size=chunks, max_size=chunks + 6))
    layers = st.integers(0, len(costs) - 1)
    ties = draw(st.lists(st.lists(layers, min_size=1, max_size=3), max_size=2))
    return config, view_of(draw(st.sets(st.integers(0, 13), min_size=1))), model_of(costs, ties)


def wanted(task: Task) -> list[Key]:
    """The operations that a task consists of."""
    lowest = task.missing[0][0]
    found: list[Key] = []
    for index, leg in enumerate(task.legs):
        found.append(("F", task.micro_batch, index))
        if leg.stop > lowest:
            found.append(("I", task.micro_batch, index))
        if any(start < leg.stop and stop > leg.start for start, stop in task.missing):
            found.append(("W", task.micro_batch, index))
    return found


def before(key: Key, last: int) -> list[Key]:
    """What an operation waits for, in a task whose last leg has this index."""
    kind, micro_batch, leg = key
    if kind == "F":
        return [("F", micro_batch, leg - 1)] if leg else []
    if kind == "W":
        return [("I", micro_batch, leg)]
    return [("F", micro_batch, leg), *([("I", micro_batch, leg + 1)] if leg < last else [])]


def replay(
    tasks: Sequence[Task], ops: Sequence[Sequence[Op]], visit: Callable[[int, Op], None] = lambda member, op: None
) -> list[Key]:
    """Run every member's list in its order, each operation as soon as what it waits for is done.

    Args:
        visit: called with the member and the operation, in the order in which they are run.

    Returns:
        All that was run; less than there is if all members wait.
    """
    last = {task.micro_batch: len(task.legs) - 1 for task in tasks}
    done: dict[Key, None] = {}
    position = [0] * len(ops)
    progress = True
    while progress:
        progress = False
        for member, mine in enumerate(ops):
            while position[member] < len(mine):
                op = mine[position[member]]
                key: Key = (op.kind, op.micro_batch, op.leg)
                if any(other not in done for other in before(key, last[op.micro_batch])):
                    break
                visit(member, op)
                done[key] = None
                position[member] += 1
                progress = True
    return list(done)
