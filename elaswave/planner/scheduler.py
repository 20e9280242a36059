"""From an agreed view to a plan: a pure function, so that the job, the tests and a simulator run the same one."""

from elaswave.config import Config
from elaswave.planner.dataflow import share
from elaswave.planner.plan import Plan
from elaswave.topology import View, absent_from


def make_plan(config: Config, previous: View | None, view: View) -> Plan:
    """Re-plan the job for the members of `view`.

    Args:
        config: the run's settings; decides the number of micro-batches.
        previous: the view that `view` replaces on this worker, None for one that has just joined.
        view: the agreed membership.
    """
    shares = share(config.micro_batches, [1.0] * len(view.members))
    return Plan(
        epoch=view.epoch,
        worker_ids=view.worker_ids(),
        micro_batches=shares,
        domains=tuple(member.node_id for member in view.members),
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
