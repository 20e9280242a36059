"""What is to be computed in an attempt, over all members, and in which order one of them does its part."""

from collections.abc import Sequence

from elaswave.config import Parallelism
from elaswave.pipeline.schedule import Operation, operations
from elaswave.pipeline.spent import Spent, legs_of
from elaswave.planner.plan import Plan, Task, micro_batches
from elaswave.planner.timetable import of_plan


class Work:
    """Tasks of an attempt.

    Args:
        plan: in which they are computed; None before the first.
        tasks: to compute.
    """

    def __init__(self, plan: Plan | None = None, tasks: tuple[Task, ...] = ()) -> None:
        self._plan, self._tasks = plan, tasks
        self._ids = micro_batches(tasks, len(plan.worker_ids)) if plan is not None else ()

    def same(self, plan: Plan, tasks: tuple[Task, ...]) -> bool:
        """Whether this is it already."""
        return self._plan is plan and self._tasks is tasks

    def of(self, member: int) -> tuple[int, ...]:
        """Micro-batches of which a member computes some part."""
        return self._ids[member]

    def of_lost(self, alive: Sequence[str]) -> Spent:
        """All that members which are not alive any more were to compute: nobody knows how far they came."""
        if self._plan is None:
            return Spent()
        gone = set(self._plan.worker_ids) - set(alive)
        return legs_of(self._tasks, {self._plan.index_of(worker_id) for worker_id in gone})

    def operations(self, member: int, parallelism: Parallelism, costs: Sequence[float]) -> tuple[Operation, ...]:
        """What a member does, in order."""
        assert self._plan is not None
        if not self._tasks:
            return ()
        order = of_plan(self._plan, self._tasks, costs, parallelism.schedule, parallelism.virtual_stages, member=member)
        return operations(self._tasks, order.ops[member], member)
