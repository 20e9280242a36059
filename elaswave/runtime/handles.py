"""What a training script holds of its model and its optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from elaswave.pipeline.executor import Executor
from elaswave.pipeline.stage import Stage
from elaswave.runtime.step import commit_step
from elaswave.zero.schema import Make, discover

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


class ModelHandle:
    """The model of this worker: computes its part of micro-batches and looks up in between.

    Attributes:
        stage: layers, weights and gradients.
    """

    def __init__(self, job: "Job", stage: Stage) -> None:
        self._job = job
        self.stage = stage

    @property
    def losses(self) -> dict[int, float]:
        """Of the micro-batches whose last layer is in this worker's sums."""
        return self.stage.gradients.losses

    def forward_backward(self, micro_batches: Sequence[int]) -> float:
        """Compute this worker's part of micro-batches and add its gradients.

        Args:
            micro_batches: ids, as the attempt offers them.

        Returns:
            This worker's part of the loss; 0 where it has no last layer.

        Raises:
            PeerLost: a member was lost; noticed between any two passes.
            ValueError: these are not the micro-batches of the attempt.
        """
        job = self._job
        if tuple(micro_batches) != job.micro_batches():
            raise ValueError(f"micro-batches {tuple(micro_batches)}: the attempt offers {job.micro_batches()}")
        self.stage.drop_passes()
        Executor(self.stage, job.world(), job.step + 1, job.stage, job.look_up, job.spent).run(job.operations)
        return sum(self.losses.values())


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
            Damaged: the state was not what was committed; nothing was changed.
        """
        commit_step(self._job)
