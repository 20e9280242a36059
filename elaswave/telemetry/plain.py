"""Plain progress lines from inside a worker, for jobs that torchrun starts and nobody follows from outside."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from elaswave.events import Kind
from elaswave.telemetry.progress import Line, Progress


class PlainProgress:
    """A sink that writes lines on one worker, and nothing on the others.

    Args:
        total_steps: of the whole run.
        out: where lines go; standard output when None.
        speaks: whether this worker is the one now, such as `lambda: job.view.ranks()[0] == job.rank`; without it the
            holder of the lowest rank that it knows of, which is rank 0 as long as it sees no views.
    """

    def __init__(
        self, total_steps: int = 0, out: TextIO | None = None, speaks: Callable[[], bool] | None = None
    ) -> None:
        self._progress = Progress(total_steps=total_steps)
        self._asked = speaks
        self._out = sys.stdout if out is None else out
        self._broken = False

    def emit(self, event: Mapping[str, Any]) -> None:
        """Take in an event of this worker; never raises."""
        if self._broken:
            return
        try:
            line = self._progress.observe(event) or self._recovery(event)
            if line is not None and self._speaks(event):
                self._out.write(f"{line}\n")
                self._out.flush()
        except (OSError, ValueError, TypeError):  # a closed stream, or a strange event: go on in silence
            self._broken = True

    def close(self) -> None:
        self._broken = True

    def _speaks(self, event: Mapping[str, Any]) -> bool:
        if self._asked is not None:
            return self._asked()
        return event.get("rank") == min(self._progress.ranks, default=0)

    def _recovery(self, event: Mapping[str, Any]) -> Line | None:
        """A recovery by its own phases, since only a reader of all events knows when the fault was."""
        phases_s = event.get("phases_s")
        if event.get("kind") != Kind.RECOVERY or not event.get("lost") or not isinstance(phases_s, Mapping):
            return None
        total_ms = 1e3 * sum(phases_s.values())
        lost = ", ".join(str(rank) for rank in event["lost"])
        phases = "  ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in phases_s.items())
        text = f"recovered from the loss of rank {lost} in {total_ms:.0f} ms: {phases}"
        return Line(t=self._progress.elapsed_s, text=text)
