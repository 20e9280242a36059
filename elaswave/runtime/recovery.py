"""Bring the members of a new view back to the newest complete step, in place. The paper's figure, as one function."""

from typing import TYPE_CHECKING

from elaswave.clock import Deadline
from elaswave.communicator.group import GroupSpec
from elaswave.errors import Dismissed, Fenced, PeerLost
from elaswave.events import Kind, Phase
from elaswave.planner.plan import Plan
from elaswave.planner.scheduler import make_plan
from elaswave.runtime.build import profile_of
from elaswave.runtime.restore import restore
from elaswave.runtime.views import chain
from elaswave.topology import View, lost_between

if TYPE_CHECKING:
    from elaswave.runtime.job import Job

WORLD = "world"
SLACK_S = 10.0
"""A paused job is ended by the coordinator; workers wait a little longer than it does."""


def recover(job: "Job", *, cause: str, target: View | None = None, calm: bool = False) -> None:
    """Enter the next view; begun again as often as a further member is lost on the way.

    Args:
        cause: why, for the report.
        target: the view to enter, when it is one that nobody is interrupted by; that of now to restore its state.
        calm: nobody was lost and nothing is damaged; all members say so.

    Raises:
        Dismissed: the job was done before this worker could take part.
        Fenced: this worker is not a member any more.
        Unrecoverable: the members do not have the whole state between them.
    """
    before, interrupted_at = job.view, job.recorder.clock.wall()
    job.settled = False
    while True:
        try:
            _recover_once(job, before, cause, interrupted_at, target, calm)
            return
        except PeerLost:
            target, calm = None, False


def _recover_once(
    job: "Job", before: View | None, cause: str, interrupted_at: float, target: View | None, calm: bool
) -> None:
    """One try: detect, agree, plan, relink, restore, migrate, resume."""
    times: dict[str, float] = {}
    with job.phase(Phase.DETECT, times, since=interrupted_at):
        job.state.release()
    with job.phase(Phase.AGREE, times):
        same = target is not None and target.epoch == job.entered_epoch
        job.view = view = target or _agree(job)
        job.entered_epoch = view.epoch
    with job.phase(Phase.PLAN, times):
        plan = make_plan(job.config, before, view, profile_of(job.trainee.stage))
        job.follow(plan)
    with job.phase(Phase.RELINK, times):
        groups = groups_of(plan, job.agent.worker_id)
        if same:
            job.mesh.regroup(groups)
        else:
            job.mesh.edit(view.epoch, {member.worker_id: member.address for member in view.members}, groups)
    with job.phase(Phase.RESTORE, times):
        restored = restore(job, calm=calm)
    try:
        with job.phase(Phase.MIGRATE, times):
            # only begun, unless it is to be waited for: it goes on behind the training
            restored.migration.progress()
            if not job.config.elasticity.background_migration:
                restored.migration.arrive()
        with job.phase(Phase.RESUME, times):
            if not restored.calm:
                job.world().barrier()
            job.resume(restored)
    except PeerLost:
        restored.migration.abandon()
        raise
    job.recorder.emit(
        Kind.RECOVERY,
        epoch=view.epoch,
        step=job.step,
        lost=[member.rank for member in lost_between(before, view)] if before else [],
        cause=view.reason if cause == "lost" else cause,
        phases_s=times,
        recomputed=restored.salvage.recomputed,
        recomputed_share=restored.salvage.recomputed_share,
        bytes_moved=restored.bytes_moved,
        plan=plan.reason,
    )


def groups_of(plan: Plan, worker_id: str) -> dict[str, GroupSpec]:
    """This worker's groups in a plan: all members, and those who share each bucket that it holds."""
    groups = {WORLD: GroupSpec(plan.worker_ids)}
    me = plan.index_of(worker_id)
    for number, bucket in enumerate(plan.buckets):
        if me in bucket.members and len(bucket.members) < len(plan.worker_ids):
            groups[bucket_group(number)] = GroupSpec(tuple(plan.worker_ids[member] for member in bucket.members))
    return groups


def bucket_group(number: int) -> str:
    """Name of the group of a bucket that not all members share."""
    return f"bucket {number}"


def _agree(job: "Job") -> View:
    """The view to enter: the end of the chain from the current one, and not a paused one."""
    deadline = Deadline(job.config.elasticity.wait_for_workers_s + SLACK_S)
    while True:
        target = chain(job.view or _first(job), job.seen)
        fresh = job.view is None or target.epoch > job.entered_epoch
        if fresh and not target.paused:
            break
        job.agent.wait_view(job.newest_epoch(), deadline)
    if target.finished:
        raise Dismissed("the job was done before this worker could take part")
    if target.member(job.agent.worker_id) is None:
        raise Fenced(f"view {target.epoch} does not contain this worker: {target.reason}")
    return target


def _first(job: "Job") -> View:
    """The view in which this worker got its rank."""
    return next(view for view in job.seen if view.member(job.agent.worker_id) is not None)
