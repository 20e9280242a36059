"""What a training script holds of its model and its optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from elaswave.communicator.group import Group
from elaswave.communicator.spans import Spans
from elaswave.events import Stage as StepStage
from elaswave.pipeline.stage import Stage
from elaswave.runtime.step import commit_step
from elaswave.snapshot.verify import digest
from elaswave.zero.schema import Make, discover

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


class ModelHandle:
    """The model of this worker: computes micro-batches and looks up between them.

    Attributes:
        stage: layers, parameters and gradients.
        losses: of the micro-batches of the open step whose gradients are in the sum.
        versions: for each of the two parameter buffers the step after which they were so, None while not whole.
    """

    def __init__(self, job: "Job", stage: Stage) -> None:
        self._job = job
        self.stage = stage
        self.losses: dict[int, float] = {}
        self.versions: list[int | None] = [0, None]

    def begin(self) -> None:
        """Forget what was computed for a step that is over, or for an attempt of which nothing is kept."""
        self.losses = {}
        self.stage.begin()

    def forward_backward(self, micro_batches: Sequence[int]) -> float:
        """Compute micro-batches and add their gradients.

        Args:
            micro_batches: ids of the step, as the attempt offers them.

        Returns:
            This worker's part of the loss.

        Raises:
            PeerLost: a member was lost; noticed between any two passes.
        """
        job, step = self._job, self._job.step + 1
        for micro_batch in micro_batches:
            with job.stage(StepStage.FORWARD, micro_batch=micro_batch):
                loss = self.stage.forward(step, micro_batch)
            job.mesh.poll()
            with job.stage(StepStage.BACKWARD, micro_batch=micro_batch):
                self.stage.backward(micro_batch)
            self.losses[micro_batch] = loss
            job.mesh.poll()
        return sum(self.losses.values())

    def gather(self, group: Group, shard: torch.Tensor, spans: Spans, version: int) -> None:
        """Collect everyone's new weights in the buffer that is not in use.

        Args:
            shard: this worker's weights.
            spans: per member its element ranges.
            version: step after which the weights are so.
        """
        aside = 1 - self.stage.active
        self.versions[aside] = None
        group.all_gather(shard, self.stage.flat[aside], spans)
        self.versions[aside] = version

    def select(self, version: int) -> None:
        """Compute with the parameters of a version that is here."""
        self.stage.flip(self.versions.index(version))

    def digest(self, version: int) -> int | None:
        """Digest of the parameters of a version; None when they are not here."""
        if version not in self.versions:
            return None
        parameters = self.stage.flat[self.versions.index(version)]
        return digest(((0, parameters.numel()),), {"master": parameters})


class OptimizerHandle:
    """The sharded optimizer of the job.

    Attributes:
        make: parameter groups -> the optimizer that is sharded.
        schema: of its state.
    """

    def __init__(self, job: "Job", make: Make) -> None:
        self._job = job
        self.make = make
        self.schema = discover(make)

    def step(self) -> None:
        """Reduce, vote, update and commit; returns when the step is committed here.

        Raises:
            PeerLost: a member was lost before the commit.
        """
        commit_step(self._job)
