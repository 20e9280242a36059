"""Join and leave a job: the handle that a training script holds."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from elaswave.clock import Deadline
from elaswave.communicator.group import Group
from elaswave.communicator.mesh import Mesh
from elaswave.config import Config
from elaswave.coordination.agent import Agent
from elaswave.coordination.secret import job_secret
from elaswave.data.dataset import Dataset
from elaswave.errors import Dismissed, PeerLost
from elaswave.events import Kind, Phase, Recorder, Stage
from elaswave.models.spec import LayeredModel
from elaswave.numerics import pin_threads
from elaswave.planner.dataflow import top_up
from elaswave.planner.plan import Plan
from elaswave.runtime.attempt import Attempt
from elaswave.runtime.build import build_stage
from elaswave.runtime.checkpoints import Checkpoints
from elaswave.runtime.exchange import gather_rows, unsigned
from elaswave.runtime.handles import ModelHandle, OptimizerHandle
from elaswave.runtime.holding import Holding
from elaswave.runtime.identity import config_digest, settings, versions
from elaswave.runtime.marker import began, mark_begun
from elaswave.runtime.recovery import WORLD, recover
from elaswave.runtime.restore import Restored
from elaswave.runtime.solo import SoloAgent
from elaswave.runtime.views import at_boundary, interrupting
from elaswave.runtime.vote import Vote
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine
from elaswave.topology import View
from elaswave.zero.schema import Make

Probe = Callable[[int, str], None]


def join(config: Config, *, recorder: Recorder | None = None, probe: Probe | None = None) -> "Job":
    """Connect this process to its job; without a launcher, make a job of one process.

    Args:
        config: the whole run; the same on every worker.
        recorder: receives events; none are written without one.
        probe: called with (step, point) at every stage of a step and phase of a recovery.

    Raises:
        AuthenticationError: this process does not know the job's secret.
        DeadlineExceeded: the node's service did not answer in time.
    """
    pin_threads(config.training.threads)
    elastic = config.elasticity
    launched = "ELASWAVE_NODE_SOCKET" in os.environ
    agent = Agent.connect(deadline=Deadline(elastic.wait_for_workers_s)) if launched else SoloAgent()
    mesh = Mesh(
        worker_id=agent.worker_id,
        host_id=agent.host_id,
        secret=job_secret(os.environ.get("ELASWAVE_RUN_ID", agent.worker_id)),
        transport=elastic.transport,
        bind=elastic.bind,
        timeout_s=elastic.collective_timeout_s,
        on_broken=agent.suspect,
    )
    return Job(config, agent, mesh, recorder or Recorder(), probe or (lambda step, point: None))


class Job:
    """One worker's part of a job.

    Attributes:
        step: the last committed step; 0 before the first.
        loss: mean loss per token of that step.
        view: the membership this worker is in or entering, None before it has a rank.
        seen: views received that are newer, in order of epoch.
        settled: the recovery into `view` is complete and steps are being computed.
        began: some member has committed a step in the life of this job.
        departed: this worker has left on purpose.
    """

    def __init__(self, config: Config, agent: Agent | SoloAgent, mesh: Mesh, recorder: Recorder, probe: Probe) -> None:
        self.config, self.agent, self.mesh, self.recorder, self._probe = config, agent, mesh, recorder, probe
        self.step, self.loss = 0, float("nan")
        self.view: View | None = None
        self.entered_epoch = 0
        self.seen: list[View] = []
        self.settled = self.departed = False
        self.run_folder = Path(folder) if (folder := os.environ.get("ELASWAVE_RUN_FOLDER")) else None
        self.began = began(self.run_folder)
        self.plan: Plan | None = None
        self.model: ModelHandle | None = None
        self.optimizer: OptimizerHandle | None = None
        self.corpus = ""
        self.checkpoints = Checkpoints(config, self.run_folder, recorder)
        self._held: Holding | None = None
        self._before: Holding | None = None
        self._agreed_epoch, self._leavers = 0, list[int]()
        self.pending: tuple[Vote, float, float] | None = None
        self._step_began_s = 0.0
        self._open: tuple[int, ...] | None = None
        agent.on_view = self._on_view
        if (control := agent.fileno()) is not None:
            mesh.attach(control, agent.on_readable)

    # -- what a script calls -----------------------------------------------------------------------------------

    def pipeline(self, model: LayeredModel, dataset: Dataset) -> ModelHandle:
        """Take charge of a model and its data; this worker computes the micro-batches that the plan gives it."""
        self.corpus = dataset.identity()
        self.model = ModelHandle(self, build_stage(self.config, model, dataset))
        return self.model

    def shard(self, make: Make, model: ModelHandle) -> OptimizerHandle:
        """Shard an elementwise optimizer over the members of the job.

        Args:
            make: parameter groups -> optimizer.
            model: what `pipeline` returned.
        """
        self.optimizer = OptimizerHandle(self, make)
        return self.optimizer

    def attempts(self) -> Iterator[Attempt]:
        """Offer every step until it is committed. A warm spare waits in here until it is needed."""
        try:
            self._take_rank()
            recover(self, cause="start")
            while not self.departed:
                while self.step < self.config.training.steps and not self.departed:
                    yield Attempt(self)
                if self.departed or self._farewell():
                    return
        except Dismissed as dismissed:
            self.recorder.emit(Kind.LEFT, step=self.step, reason=str(dismissed))

    def close(self) -> None:
        """Leave nothing open."""
        self.mesh.detach()
        self.mesh.close()
        self.agent.close()
        self.recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.recorder.emit(Kind.ERROR, message=f"{type(error).__name__}: {error}")
        self.close()

    # -- joining and leaving -----------------------------------------------------------------------------------

    def _take_rank(self) -> None:
        view = self.agent.join(
            address=self.mesh.address,
            config_digest=config_digest(self.config, self.corpus),
            versions=versions() | settings(self.config, self.corpus),
            deadline=Deadline(self.config.elasticity.wait_for_workers_s),
        )
        self.recorder.identity.update(rank=self.agent.rank, worker_id=self.agent.worker_id, pid=os.getpid())
        if not self.began and self.agent.rank == min(view.ranks()):
            config = self.config.model_dump(mode="json")
            self.recorder.emit(Kind.RUN, config=config, name=self.config.run.name, workers=len(view.members))
        self.recorder.emit(Kind.JOINED, epoch=view.epoch, step=self.step)

    def _farewell(self) -> bool:
        """Wait until everyone has committed the last step, and written it; false when a loss has taken it back."""
        try:
            self.holding.pool.finish()
            self._write_last()
            self.world().barrier()
        except PeerLost:
            if not self.agent.newest.finished:
                recover(self, cause="lost")
                return False
        self.agent.finish()
        self.recorder.emit(Kind.LEFT, step=self.step, reason="finished")
        return True

    def _write_last(self) -> None:
        """The state after the last step, in the layout in which the job ends."""
        if not self.config.checkpoint.every_steps:
            return
        timeout_s = self.config.elasticity.collective_timeout_s / 2
        self.checkpoints.finish(timeout_s)
        if any(row[0] for row in gather_rows(self.world(), [self.checkpoints.busy])):
            self.checkpoints.skip(self.step)
            return
        self.checkpoints.write(self, self.step)
        self.checkpoints.finish(timeout_s)

    def _on_view(self, view: View) -> None:
        """Remember a view, and interrupt what it makes impossible."""
        self.seen.append(view)
        if self.view is not None and (cut := interrupting(self.view, self.seen, settled=self.settled)) is not None:
            self.mesh.interrupt(cut.epoch)

    def newest_epoch(self) -> int:
        return self.seen[-1].epoch if self.seen else self.entered_epoch

    # -- what the parts of a step use --------------------------------------------------------------------------

    @property
    def holding(self) -> Holding:
        assert self._held is not None, "attempts() makes the first layout"
        return self._held

    @property
    def trainee(self) -> ModelHandle:
        assert self.model is not None, "call job.pipeline(model, dataset) first"
        return self.model

    def holdings(self) -> list[Holding]:
        """The current layout and, until its first commit, the one before."""
        return [held for held in (self._held, self._before) if held is not None]

    def world(self) -> Group:
        return self.mesh.group(WORLD)

    def micro_batches(self) -> tuple[int, ...]:
        """Ids this worker is to compute now: its share of the plan, or of what a lost member has left open."""
        assert self.plan is not None
        if self._open is not None:
            return self._open
        return self.plan.micro_batches[self.plan.index_of(self.agent.worker_id)]

    @contextmanager
    def stage(self, stage: Stage, **fields: int) -> Iterator[None]:
        """Mark a part of a step: probed, timed, and shown to the node."""
        self._reach(stage)
        with self.recorder.span(stage, step=self.step + 1, **fields):
            yield

    @contextmanager
    def phase(self, phase: Phase, times: dict[str, float], since: float | None = None) -> Iterator[None]:
        """Mark a phase of a recovery, as `stage` does for a step."""
        start = self.recorder.clock.wall() if since is None else since
        self._reach(phase)
        try:
            yield
        finally:
            end = self.recorder.clock.wall()
            times[str(phase)] = end - start
            self.recorder.emit(
                Kind.SPAN, name=str(phase), t0=start, t1=end, step=self.step, epoch=self.view.epoch if self.view else 0
            )

    def _reach(self, point: Stage | Phase) -> None:
        self.agent.progress(self.step, str(point))
        self._probe(self.step + 1, str(point))

    # -- the life of a step ------------------------------------------------------------------------------------

    def begin_attempt(self) -> None:
        self._step_began_s = self.recorder.clock.monotonic()
        if self._open is None:
            self.trainee.begin()

    def log_values(self, values: Mapping[str, float]) -> None:
        """Write numbers of the script down."""
        self.recorder.emit(Kind.METRICS, step=self.step, **values)

    def commit(self, rows: Sequence[Sequence[int]]) -> None:
        """Name the new version the current one, everywhere or nowhere: nothing in here waits for anybody.

        Args:
            rows: per member the digest of its shard, its newest epoch, whether it leaves, and whether it is still
                writing a checkpoint.
        """
        held, step = self.holding, self.step + 1
        held.optimizer.commit()
        self.trainee.select(step)
        held.record(step, [unsigned(row[0]) for row in rows])
        self._agreed_epoch = min(row[1] for row in rows)
        self._leavers = [i for i, row in enumerate(rows) if row[2]]
        self._before = None
        if not self.began:
            self.began = True
            mark_begun(self.run_folder)
        self._announce(step, combine(held.digests[step]))
        self._reach(Stage.SNAPSHOT)
        assert self.pending is not None
        held.pool.start(held.optimizer.state(), gradient=held.optimizer.gradient, lr=self.pending[2])
        self._checkpoint(step, busy=any(row[3] for row in rows))

    def _checkpoint(self, step: int, *, busy: bool) -> None:
        self.checkpoints.tell()
        if not self.checkpoints.due(step) or step == self.config.training.steps:
            return
        if busy:
            self.checkpoints.skip(step)
        else:
            self.checkpoints.write(self, step)

    def _announce(self, step: int, digest: int) -> None:
        """The step counts: write it down, with the micro-batches that this worker computed for it."""
        assert self.pending is not None
        vote, norm, lr = self.pending
        self.step, self.loss = step, vote.loss
        self.recorder.emit(
            Kind.STEP_COMMITTED,
            step=step,
            epoch=self.entered_epoch,
            loss=vote.loss,
            norm=norm,
            lr=lr,
            tokens=self.trainee.stage.tokens_per_step,
            digest=f"{digest:016x}",
            micro_batches=sorted(self.trainee.losses),
            counted=len(vote.losses),
            step_s=self.recorder.clock.monotonic() - self._step_began_s,
        )
        self.trainee.losses = {}
        self._open = None

    def end_attempt(self) -> None:
        """At the step boundary: let workers go that leave, and enter a view in which nobody was lost."""
        try:
            if self._leavers:
                self._part()
            elif self._coming() is not None:
                self._cross()
        except PeerLost:
            recover(self, cause="lost")

    def _coming(self) -> View | None:
        assert self.view is not None
        return at_boundary(self.view, self.seen, self._agreed_epoch)

    def _cross(self) -> None:
        """Everyone has seen the next view: enter it with all copies whole."""
        target = self._coming()
        assert target is not None
        self.holding.pool.finish()
        recover(self, cause=target.reason, target=target)

    def _part(self) -> None:
        """Members that leave hand over their shards as copies, and are gone when the others go on."""
        assert self.plan is not None
        self.holding.pool.finish()
        self.checkpoints.finish(self.config.elasticity.leave_timeout_s / 2)
        self.world().barrier()
        leaving = {self.plan.worker_ids[index] for index in self._leavers}
        if self.agent.worker_id in leaving:
            self.agent.depart()
            self.departed = True
            self.recorder.emit(Kind.LEFT, step=self.step, reason="asked to leave")
            return
        deadline = Deadline(self.config.elasticity.leave_timeout_s)
        while leaving & set(self.agent.newest.worker_ids()):
            self.agent.wait_view(self.newest_epoch(), deadline)
        assert self.view is not None
        target = at_boundary(self.view, self.seen, self.newest_epoch())
        recover(self, cause=self.agent.newest.reason, target=target)

    # -- the life of a recovery --------------------------------------------------------------------------------

    def release_copies(self) -> None:
        """End shipping that will not complete; copies that have arrived count."""
        for held in self.holdings():
            held.pool.settle()

    def resume(self, restored: Restored) -> int:
        """Everyone has confirmed the new layout: compute in it.

        Returns:
            How many micro-batches this worker computes although some worker had computed them before.
        """
        assert self.plan is not None
        if self._held is not None and restored.version == self.step + 1:
            self._announce(restored.version, combine(restored.held.digests[restored.version]))
        self._before, self._held = self._held, restored.held
        self.step = restored.version
        self.trainee.select(restored.version)
        self.settled = True
        self.seen = [view for view in self.seen if view.epoch > self.entered_epoch]
        if any(restored.done):
            index = self.plan.index_of(self.agent.worker_id)
            if not restored.done[index]:  # the sum here, if any, is of a step that has been taken back, or is over
                self.trainee.begin()
            self._open = top_up(self.config.micro_batches, restored.done)[index]
            return len(self._open)
        dropped = len(self.trainee.losses)
        self._open = None
        self.trainee.losses = {}
        return dropped

    def report_corrupt(self, offer: Offer) -> None:
        what = "own shard" if offer.owner else "copy of shard"
        self.recorder.emit(
            Kind.ERROR, message=f"{what} {offer.shard} of step {offer.version} is not what was announced; not used"
        )
