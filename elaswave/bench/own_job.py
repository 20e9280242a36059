"""An ElasWave job as a contender in turns: workers as `elaswave launch` starts them, with a node's service beside."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from elaswave import session
from elaswave.bench.local_node import local_node
from elaswave.config import Config, SnapshotMode
from elaswave.coordination.launch_settings import FOLLOWED
from elaswave.coordination.run_folder import VARIABLE
from elaswave.coordination.timeouts import Timeouts
from elaswave.data.dataset import build_dataset
from elaswave.models.build import build_model
from elaswave.runtime.build import optimizer_maker
from elaswave.snapshot.copy import Copy


@contextmanager
def own_service(name: str, config: Config, workers: int) -> Iterator[Mapping[str, str]]:
    """The node of a job and a folder for its events; yields the environment of its workers.

    Call it before this process has threads.
    """
    run_id = "bench-" + "".join(letter if letter.isalnum() else "-" for letter in name)
    with (
        tempfile.TemporaryDirectory(prefix="elaswave-bench-") as folder,
        local_node(run_id, workers, Timeouts.from_settings(config.elasticity)) as environment,
    ):
        yield {**environment, VARIABLE: folder, FOLLOWED: "1"}


class OwnTrainer:
    """One worker; it stays in the job, since a node ends workers that have hung up."""

    def __init__(self, config: Config) -> None:
        self.job = session.join(config)
        self._model = self.job.pipeline(build_model(config.model, config.training.seed), build_dataset(config))
        self._optimizer = self.job.shard(optimizer_maker(config.optimizer), self._model)
        self._attempts = self.job.attempts()

    def steps(self, count: int) -> None:
        goal = self.job.step + count
        while self.job.step < goal:
            with next(self._attempts) as attempt:
                self._model.forward_backward(attempt.micro_batches)
                self._optimizer.step()

    def figures(self) -> dict[str, float | None]:
        return {"loss": self.job.loss, "copies_mib": sum(map(self._bytes_of, self._copies())) / 2**20}

    def _copies(self) -> Iterable[Copy]:
        return self.job.holding.pool.copies.values()

    def _bytes_of(self, copy: Copy) -> int:
        """A whole version, room for the next, and what it is computed from if it is computed here."""
        versions_bytes = 2 * copy.state(copy.versions[0]).raw.nbytes
        replayed = self.job.config.snapshot.mode is SnapshotMode.GRADIENT
        return versions_bytes + (copy.step_target().nbytes if replayed else 0)
