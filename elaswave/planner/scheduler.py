"""From an agreed view to a plan: a pure function, so that the job, the tests and a simulator run the same one."""

from elaswave.config import Config
from elaswave.planner.dataflow import share
from elaswave.planner.plan import Bucket, Leg, Plan, Task
from elaswave.topology import View, absent_from


def make_plan(config: Config, previous: View | None, view: View) -> Plan:
    """Re-plan the job for the members of `view`.

    Args:
        config: the run's settings; decides the number of micro-batches.
        previous: the view that `view` replaces on this worker, None for one that has just joined.
        view: the agreed membership.
    """
    members = tuple(range(len(view.members)))
    shares = share(config.micro_batches, [1.0] * len(members))
    return Plan(
        epoch=view.epoch,
        worker_ids=view.worker_ids(),
        domains=tuple(member.node_id for member in view.members),
        stages=(members,),
        layers=((0,),) * len(members),
        buckets=(Bucket(units=(0,), members=members),),
        tasks=tuple(
            Task(micro_batch=i, legs=(Leg(member=member, start=0, stop=1),), missing=((0, 1),))
            for member, ids in enumerate(shares)
            for i in ids
        ),
        reason=_reason(config, previous, view),
    )


def _reason(config: Config, previous: View | None, view: View) -> str:
    """What changed and what it means for the work of each member."""
    count, total = len(view.members), config.micro_batches
    low, extra = divmod(total, count)
    each = f"{low} micro-batches each" if not extra else f"{low}-{low + 1} micro-batches each"
    work = f"{total} micro-batches over {count} workers ({each})"
    if previous is None:
        return work
    lost = absent_from(previous, view)
    new = absent_from(view, previous)
    changes = [f"without rank {m.rank}" for m in lost] + [f"with rank {m.rank}" for m in new]
    return f"{', '.join(changes) or 'same members'}: {work}"
