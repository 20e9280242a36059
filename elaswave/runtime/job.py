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
from elaswave.errors import Dismissed
from elaswave.events import Kind, Phase, Recorder, Stage
from elaswave.numerics import pin_threads
from elaswave.pipeline.buckets import Key
from elaswave.pipeline.layers import LossSum
from elaswave.pipeline.schedule import Operation
from elaswave.pipeline.spent import Spent
from elaswave.planner.plan import Plan, Task
from elaswave.runtime.attempt import Attempt
from elaswave.runtime.boundary import farewell
from elaswave.runtime.build import build_stage
from elaswave.runtime.checkpoints import Checkpoints
from elaswave.runtime.handles import ModelHandle, OptimizerHandle
from elaswave.runtime.holding import Holding
from elaswave.runtime.identity import config_digest, settings, versions
from elaswave.runtime.marker import began, mark_begun
from elaswave.runtime.migration import Migration
from elaswave.runtime.recovery import WORLD, bucket_group, recover
from elaswave.runtime.restore import Restored
from elaswave.runtime.sharded_state import ShardedState
from elaswave.runtime.solo import SoloAgent
from elaswave.runtime.views import interrupting
from elaswave.runtime.vote import Vote
from elaswave.runtime.work import Work
from elaswave.snapshot.ring import Holding as Offer
from elaswave.topology import View
from elaswave.zero.schema import Make

Probe = Callable[[int, str, "Job"], None]
"""Called with (step, point, job) at every stage of a step and phase of a recovery; may hurt what the job holds."""


def join(config: Config, *, recorder: Recorder | None = None, probe: Probe | None = None) -> "Job":
    """Connect this process to its job; without a launcher, make a job of one process.

    Args:
        config: the whole run; the same on every worker.
        recorder: receives events; none are written without one.
        probe: see `Probe`; nothing is hurt without one.

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
    return Job(config, agent, mesh, recorder or Recorder(), probe or (lambda step, point, job: None))


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
        plan: who computes and holds what in `view`.
        operations: what this worker does in the attempt on offer.
        state: this worker's part of the sharded state, in the layout of `plan`.
        pending: vote, gradient norm and learning rate of the step that is being committed.
        leavers: indices of members that leave after the last committed step.
        agreed_epoch: every member has received the views up to here.
        spent: what is known to have been computed of the open step, kept or not.
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
        self.operations: tuple[Operation, ...] = ()
        self.agreed_epoch, self.leavers = 0, list[int]()
        self.pending: tuple[Vote, float, float] | None = None
        self.state = ShardedState(config.snapshot)
        self._work = Work()
        self._keeps_sums = self._computing = False
        self.spent = Spent()
        self._step_began_s = 0.0
        agent.on_view = self._on_view
        if (control := agent.fileno()) is not None:
            mesh.attach(control, agent.on_readable)

    # -- what a script calls -----------------------------------------------------------------------------------

    def pipeline(self, model: object, dataset: Dataset, *, loss: LossSum | None = None) -> ModelHandle:
        """Take charge of a model and its data; this worker computes the layers and micro-batches that the plan says.

        Args:
            model: layers that are computed one after another: an object with `layers()` and
                `loss_sum(output, targets)`, or an `nn.Sequential` or list of modules or LayerSpecs.
            dataset: samples by number.
            loss: (output, targets) -> sum of the losses, for a model that has none of its own.

        Raises:
            ConfigError: the model cannot be trained in this way; the message says why and what to do.
        """
        self.corpus = dataset.identity()
        self.model = ModelHandle(self, build_stage(self.config, model, dataset, loss))
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
                if self.departed or farewell(self):
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

    # -- views -------------------------------------------------------------------------------------------------

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
        return self.state.holding

    @property
    def migration(self) -> Migration:
        return self.state.migration

    @property
    def trainee(self) -> ModelHandle:
        assert self.model is not None, "call job.pipeline(model, dataset) first"
        return self.model

    def world(self) -> Group:
        return self.mesh.group(WORLD)

    def buckets(self) -> list[tuple[int, Key, Group]]:
        """This worker's buckets with their groups, in an order in which neighbouring stages do not wait in a row."""
        assert self.plan is not None
        me, everyone = self.plan.index_of(self.agent.worker_id), len(self.plan.worker_ids)
        mine = [(number, bucket) for number, bucket in enumerate(self.plan.buckets) if me in bucket.members]
        return [
            (
                number,
                bucket.units,
                self.world() if len(bucket.members) == everyone else self.mesh.group(bucket_group(number)),
            )
            for number, bucket in sorted(mine, key=lambda item: (item[0] % 2, item[0] % 4, item[0]))
        ]

    def micro_batches(self) -> tuple[int, ...]:
        """Ids of which this worker computes some part now: its share of the step, or of what a fault has left."""
        assert self.plan is not None
        return self._work.of(self.plan.index_of(self.agent.worker_id))

    def look_up(self) -> None:
        """Between operations: let messages travel, and see whether a member was lost.

        Raises:
            PeerLost: one was.
        """
        self.mesh.poll()
        self.migration.progress()

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
        self._probe(self.step + 1, str(point), self)

    # -- the life of a step ------------------------------------------------------------------------------------

    def begin_attempt(self) -> None:
        self._step_began_s = self.recorder.clock.monotonic()
        self._computing = True
        if not self._keeps_sums:
            self.trainee.stage.gradients.begin()

    def log_values(self, values: Mapping[str, float]) -> None:
        """Write numbers of the script down."""
        self.recorder.emit(Kind.METRICS, step=self.step, **values)

    def commit(self, rows: Sequence[Sequence[int]]) -> None:
        """Name the new version the current one, everywhere or nowhere: nothing in here waits for anybody.

        Args:
            rows: per member the digest of its shard, its newest epoch, whether it leaves, whether it is still writing
                a checkpoint, whether its shard was damaged, and per unit its part of the digest of the weights.
        """
        step = self.step + 1
        self.trainee.stage.select(step)
        state_digest = self.state.commit(step, rows)
        self.agreed_epoch = min(row[1] for row in rows)
        self.leavers = [i for i, row in enumerate(rows) if row[2]]
        if not self.began:
            self.began = True
            mark_begun(self.run_folder)
        self._announce(step, state_digest)
        assert self.plan is not None
        self._take_up(self.plan.tasks)
        self._reach(Stage.SNAPSHOT)
        assert self.pending is not None
        held = self.holding
        held.pool.start(held.optimizer.state(), gradient=held.optimizer.gradient, lr=self.pending[2])
        self.checkpoints.after(self, step, busy=any(row[3] for row in rows))

    def _announce(self, step: int, state_digest: int) -> None:
        """The step counts: write it down, with the micro-batches whose loss this worker computed."""
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
            digest=f"{state_digest:016x}",
            micro_batches=sorted(self.trainee.losses),
            counted=len(vote.losses),
            step_s=self.recorder.clock.monotonic() - self._step_began_s,
        )
        self.trainee.stage.gradients.forget_records()
        self._keeps_sums = self._computing = False
        self.spent = Spent()

    # -- the life of a recovery --------------------------------------------------------------------------------

    def follow(self, plan: Plan) -> None:
        """Enter a plan; what was being computed in the one before is remembered for what can be kept of it."""
        assert self.view is not None
        if self._computing:
            self.spent.merge(self._work.of_lost(self.view.worker_ids()))
        self.plan = plan

    def resume(self, restored: Restored) -> None:
        """Everyone has what it needs to go on: compute in the new layout."""
        if self.state.entered and restored.version == self.step + 1:
            self._announce(restored.version, restored.digest)
        self.state.enter(restored.held, restored.migration, restored.digest, restored.truth)
        self.step = restored.version
        self.trainee.stage.select(restored.version)
        self.settled = True
        self.seen = [view for view in self.seen if view.epoch > self.entered_epoch]
        self._computing = False
        self._keeps_sums = not restored.salvage.forget
        self.spent = restored.salvage.spent
        self._take_up(restored.salvage.tasks)

    def _take_up(self, tasks: tuple[Task, ...]) -> None:
        """These are to be computed next."""
        assert self.plan is not None
        if self._work.same(self.plan, tasks):
            return
        self._work = Work(self.plan, tasks)
        self.operations = self._work.operations(
            self.plan.index_of(self.agent.worker_id), self.config.parallelism, self.costs
        )

    @property
    def costs(self) -> tuple[float, ...]:
        """Of each layer, as the planner is told."""
        return self.trainee.stage.layers.profile()[0]

    def report_corrupt(self, offer: Offer) -> None:
        what = "own shard" if offer.owner else "copy of shard"
        message = f"{what} {offer.shard} of step {offer.version} is not what was announced; not used"
        self.recorder.emit(Kind.ERROR, message=message, damaged=what, shard=offer.shard, step=offer.version)

    def report_damaged_weights(self, unit: int, version: int) -> None:
        table = self.trainee.stage.layers.table
        names = ", ".join(parameter.name for parameter in table.of_unit(unit)[:1])
        message = f"weights of unit {unit} ({names}, ...) of step {version} are not what the shards say; not used"
        self.recorder.emit(Kind.ERROR, message=message, damaged="weights", unit=unit, step=version)
