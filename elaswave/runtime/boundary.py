"""Between two steps: let workers go that leave, enter a view in which nobody was lost, and end the job."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elaswave.clock import Deadline
from elaswave.errors import Damaged, PeerLost
from elaswave.events import Kind
from elaswave.runtime.exchange import gather_rows, signed, unsigned
from elaswave.runtime.recovery import recover
from elaswave.runtime.views import at_boundary
from elaswave.topology import View

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


def end_attempt(job: "Job") -> None:
    """A step has been committed: part from members that leave, or meet those that have come."""
    try:
        if job.leavers:
            _part(job)
        elif (target := _coming(job)) is not None:
            job.holding.pool.finish()  # everyone enters the next view with all copies whole
            recover(job, cause=target.reason, target=target)
    except PeerLost:
        recover(job, cause="lost")


def replan(job: "Job", costs: Sequence[float]) -> None:
    """Between two steps: share the layers out anew; nobody comes or goes, and no link is touched.

    Args:
        costs: of the layers' forwards; every member calls this after the same step, with the same ones.
    """
    job.trainee.stage.layers.weigh(costs)
    try:
        job.holding.pool.finish()
        recover(job, cause="other costs of layers", target=job.view, calm=True)
    except PeerLost:
        recover(job, cause="lost")


def _coming(job: "Job") -> View | None:
    """The next view, once all members have told that they have seen it."""
    assert job.view is not None
    return at_boundary(job.view, job.seen, job.agreed_epoch)


def _part(job: "Job") -> None:
    """Members that leave hand over their shards as copies, and are gone when the others go on."""
    assert job.plan is not None
    assert job.view is not None
    job.holding.pool.finish()
    job.checkpoints.finish(job.config.elasticity.leave_timeout_s / 2)
    job.world().barrier()
    leaving = {job.plan.worker_ids[index] for index in job.leavers}
    if job.agent.worker_id in leaving:
        job.agent.depart()
        job.departed = True
        job.recorder.emit(Kind.LEFT, step=job.step, reason="asked to leave")
        return
    deadline = Deadline(job.config.elasticity.leave_timeout_s)
    while leaving & set(job.agent.newest.worker_ids()):
        job.agent.wait_view(job.newest_epoch(), deadline)
    target = at_boundary(job.view, job.seen, job.newest_epoch())
    recover(job, cause=job.agent.newest.reason, target=target)


def farewell(job: "Job") -> bool:
    """Wait until everyone has committed the last step, and written it; false when a loss may have taken it back."""
    try:
        _settle(job)
        job.holding.pool.finish()
        job.checkpoints.write_last(job)
        job.world().barrier()
    except PeerLost:
        if not job.agent.newest.finished:
            recover(job, cause="lost")
            return False
    except Damaged as damaged:
        recover(job, cause=str(damaged), target=job.view)
        return False
    job.agent.finish()
    job.recorder.emit(Kind.LEFT, step=job.step, reason="finished")
    return True


def _settle(job: "Job") -> None:
    """See a layout whole that was entered after the last step, so that no vote has done it."""
    if job.migration.pending:
        job.migration.finish()
        rows = gather_rows(job.world(), [signed(job.migration.digest)])
        job.state.check(job.step, tuple(unsigned(row[0]) for row in rows))
