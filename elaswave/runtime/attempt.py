"""One try at one step: `with attempt:` ends in a commit, or in a recovery after which the step is offered again."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from elaswave.errors import Damaged, PeerLost
from elaswave.runtime.boundary import end_attempt
from elaswave.runtime.recovery import recover

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


class Attempt:
    """A step on offer. Everything with a side effect belongs inside the `with`.

    Attributes:
        step: number of the step that is tried, from 1.
        micro_batches: ids of which this worker computes some part.
    """

    def __init__(self, job: "Job") -> None:
        self._job = job
        self.step = job.step + 1
        self.micro_batches = job.micro_batches()

    def __enter__(self) -> Self:
        self._job.begin_attempt()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Recover when a member or state was lost; let every other exception through."""
        if isinstance(error, PeerLost):
            recover(self._job, cause="lost")
            return True
        if isinstance(error, Damaged):
            recover(self._job, cause=str(error), target=self._job.view)
            return True
        if error is None:
            end_attempt(self._job)
        return False

    @property
    def loss(self) -> float:
        """Mean loss per token over the whole global batch of the committed step; the same on every worker."""
        return self._job.loss

    def log(self, **values: float) -> None:
        """Write numbers of your own beside the step's event."""
        self._job.log_values(values)
