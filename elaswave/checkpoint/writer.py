"""Write checkpoints behind the training: a copy of the shard is taken at once, a thread brings it to the disk.

No worker waits for another. Whoever finds all parts there finishes the checkpoint, and its name changes when it is
whole. What goes wrong is told and costs this one checkpoint, never the training.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elaswave.block import Slot
from elaswave.checkpoint import folders, manifest, tensors
from elaswave.checkpoint.manifest import Manifest
from elaswave.checkpoint.tensors import Range, Span
from elaswave.clock import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One worker's part of one checkpoint.

    Attributes:
        parent: folder of all checkpoints.
        index: of this worker's shard.
        epoch: of the view whose members write it.
        spans: all parameters, ascending.
        ranges: of the shard, global.
        manifest: of the whole; the same on all workers.
        keep: how many whole ones to keep.
    """

    parent: Path
    index: int
    epoch: int
    spans: Sequence[Span]
    ranges: Sequence[Range]
    manifest: Manifest
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a part.

    Attributes:
        path: of the checkpoint when this worker finished it; None when others have to, or it failed.
        problem: why it was not written.
    """

    step: int
    path: Path | None = None
    num_bytes: int = 0
    problem: str | None = None


class Writer:
    """Writes one part at a time.

    Attributes:
        outcome: of the last part, until it is taken.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._copy: Slot | None = None
        self._outcome: Outcome | None = None

    @property
    def busy(self) -> bool:
        """A part is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, part: Part, own: Slot) -> None:
        """Copy the shard and return; the rest happens in a thread.

        Args:
            part: what it is.
            own: the committed version; may change when this has returned.
        """
        if self.busy:
            raise ValueError("the part before is still being written")
        if self._copy is None or (self._copy.kinds, self._copy.num_elements) != (own.kinds, own.num_elements):
            self._copy = Slot(own.kinds, own.num_elements)
        self._copy.raw.copy_(own.raw)
        self._thread = threading.Thread(target=self._run, args=(part, self._copy), name="checkpoint", daemon=True)
        self._thread.start()

    def take_outcome(self) -> Outcome | None:
        """What became of the last part; None while it is being written, and when it has been told."""
        if self.busy:
            return None
        outcome, self._outcome = self._outcome, None
        return outcome

    def wait(self, deadline: Deadline) -> None:
        """Until the part is written, or the deadline."""
        if self._thread is not None:
            self._thread.join(deadline.left_s())

    def _run(self, part: Part, copy: Slot) -> None:
        try:
            self._outcome = write(part, copy)
        except Exception as error:  # of torch's writer, too: whatever it is, training goes on
            self._outcome = Outcome(step=part.manifest.step, problem=f"{type(error).__name__}: {error}")


def write(part: Part, own: Slot) -> Outcome:
    """Write a part, and finish the checkpoint when it was the last one.

    Raises:
        OSError: no space, or no permission.
    """
    step, num_parts = part.manifest.step, part.manifest.num_parts
    aside, final = folders.partial(part.parent, step, part.epoch), folders.complete(part.parent, step)
    aside.mkdir(parents=True, exist_ok=True)
    num_bytes = tensors.write_part(aside, part.index, list(tensors.pieces(part.spans, part.ranges, own.tensors)))
    try:
        if not all((aside / tensors.part_file(index)).exists() for index in range(num_parts)):
            return Outcome(step=step, num_bytes=num_bytes)
        tensors.finish(aside, num_parts, f"finish-{part.index}-{os.getpid()}")
        folders.write_file(aside / manifest.FILE, part.manifest.text())
        folders.sync(aside)
    except FileNotFoundError:  # another worker has found all parts too, and was faster
        if not final.exists():
            raise
        return Outcome(step=step, num_bytes=num_bytes)
    published = folders.publish(aside, final)
    if published:
        folders.prune(part.parent, part.keep)
    return Outcome(step=step, num_bytes=num_bytes, path=final if published else None)
