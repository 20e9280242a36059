"""When checkpoints are written, what is told of them, and how a job begins from one."""

from pathlib import Path
from typing import TYPE_CHECKING

from elaswave.checkpoint import folders, manifest
from elaswave.checkpoint.manifest import Manifest
from elaswave.clock import Deadline
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.events import Kind, Recorder
from elaswave.runtime.exchange import gather_rows
from elaswave.runtime.holding import Holding
from elaswave.runtime.identity import versions
from elaswave.snapshot.verify import combine

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


class Checkpoints:
    """One worker's part in the checkpoints of a job.

    Attributes:
        folder: of all checkpoints; None when the job has no place for them.
    """

    def __init__(self, config: Config, run_folder: Path | None, recorder: Recorder) -> None:
        """
        Raises:
            ConfigError: checkpoints are wanted, and there is no place for them.
        """
        self._config, self._recorder = config.checkpoint, recorder
        self.folder = folders.place(config, run_folder)
        self._writer = None
        if self._config.every_steps:
            if self.folder is None:
                raise ConfigError("checkpoint.folder", "", "this job has no run folder; name a folder")
            from elaswave.checkpoint.writer import Writer  # a second of imports that most jobs do not need

            self._writer = Writer()

    @property
    def busy(self) -> bool:
        return self._writer is not None and self._writer.busy

    def after(self, job: "Job", step: int, *, busy: bool) -> None:
        """A step has been committed: begin to write it if it is due.

        Args:
            busy: some worker is still writing the one before.
        """
        self.tell()
        if not self.due(step) or step == job.config.training.steps:
            return
        if busy:
            self.skip(step)
        else:
            self.write(job, step)

    def write_last(self, job: "Job") -> None:
        """Write the state after the last step, in the layout in which the job ends; every member calls it.

        Raises:
            PeerLost: a member was lost.
        """
        if not self._config.every_steps:
            return
        timeout_s = job.config.elasticity.collective_timeout_s / 2
        self.finish(timeout_s)
        if any(row[0] for row in gather_rows(job.world(), [self.busy])):
            self.skip(job.step)
            return
        self.write(job, job.step)
        self.finish(timeout_s)

    def due(self, step: int) -> bool:
        """Whether the state after a step is to be written."""
        return self._writer is not None and step % self._config.every_steps == 0

    def skip(self, step: int) -> None:
        """Some worker is still writing the one before: all leave this one out."""
        self._recorder.emit(
            Kind.ERROR, message=f"checkpoint of step {step} left out: the one before is still being written"
        )

    def write(self, job: "Job", step: int) -> None:
        """Begin to write this worker's part; every member of the layout does so at the same step."""
        from elaswave.checkpoint.writer import Part

        assert self._writer is not None
        assert self.folder is not None
        held, table = job.holding, job.trainee.stage.layers.table
        own = held.optimizer.state(step)
        whole = Manifest(
            step=step,
            digest=f"{combine(held.digests[step]):016x}",
            num_parts=held.layout.num_shards,
            scalars=own.scalars,
            shapes=table.shapes(),
            config=job.config.model_dump(mode="json"),
            corpus=job.corpus,
            versions=versions(),
        )
        part = Part(
            parent=self.folder,
            index=held.index,
            epoch=held.number,
            spans=table.named_spans(),
            ranges=held.layout.ranges(held.index),
            manifest=whole,
            keep=self._config.keep,
        )
        self._writer.start(part, own)

    def tell(self) -> None:
        """Write down what became of the part that was written last."""
        outcome = self._writer.take_outcome() if self._writer is not None else None
        if outcome is None:
            return
        if outcome.problem is not None:
            message = f"checkpoint of step {outcome.step} was not written: {outcome.problem}"
            self._recorder.emit(Kind.ERROR, message=message)
        elif outcome.path is not None:
            self._recorder.emit(Kind.CHECKPOINT, step=outcome.step, path=str(outcome.path), bytes=outcome.num_bytes)

    def finish(self, timeout_s: float) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.wait(Deadline(timeout_s))
            self.tell()

    def advice(self) -> str:
        """How to go on after the state has been lost."""
        newest = folders.found(self.folder) if self.folder is not None else []
        if newest:
            return f"Start the job again with --checkpoint.resume={newest[-1]}"
        return "There is no checkpoint: start the job again from step 1, and set checkpoint.every_steps"


def load(job: "Job", held: Holding) -> Manifest:
    """Fill this worker's new shard from the checkpoint that the config names.

    Raises:
        ConfigError: it is not there, damaged, or of another kind of run.
    """
    from elaswave.checkpoint.tensors import pieces, read_into

    folder = folders.resolve(job.config.checkpoint.resume)
    found = manifest.read(folder)
    changed = manifest.check(found, job.config, folder)
    if found.corpus != job.corpus:
        changed = (*changed, f"data.corpus = {job.corpus!r}, was {found.corpus!r}")
    for text in changed if held.index == 0 else ():
        job.recorder.emit(Kind.ERROR, message=f"resumed with another setting, the bits will differ: {text}")
    target = held.optimizer.staging()
    read_into(
        folder,
        list(pieces(job.trainee.stage.layers.table.named_spans(), held.layout.ranges(held.index), target.tensors)),
    )
    held.optimizer.adopt(found.step, found.scalars)
    return found
