"""Decides when an agent tells its user that the job stands still, and that it goes on (pure)."""

from dataclasses import dataclass

from elaswave.topology import View

FORMING_S = 15.0
"""A job that has not formed after this long is waiting for more than its own workers' imports."""


PAUSED_S = 1.0
"""A pause this short is either made up for at once, or the beginning of an end that has its own message."""


@dataclass(slots=True)
class WaitNotice:
    """What has been told.

    Args:
        now: when the agent began to look.
        min_workers: with fewer the job pauses.
        wait_s: how long it waits before it gives up.
    """

    now: float
    min_workers: int
    wait_s: float
    _told_forming: bool = False
    _told_paused: int | None = None
    _paused_since: float | None = None

    def look(self, now: float, view: View | None) -> str | None:
        """A line for the user, or None; every standstill is told once, and again when the number of workers changes."""
        if view is None:
            late = not self._told_forming and now - self.now >= FORMING_S
            self._told_forming = self._told_forming or late
            return f"the job has not formed yet; it waits {self.wait_s:g} s for its nodes and workers" if late else None
        if not view.paused:
            resumed, self._told_paused = self._told_paused is not None and not view.finished, None
            self._paused_since = None
            return f"the job goes on with {len(view.members)} workers" if resumed else None
        self._paused_since = now if self._paused_since is None else self._paused_since
        if now - self._paused_since < PAUSED_S or self._told_paused == len(view.members):
            return None
        self._told_paused = len(view.members)
        return (
            f"the job waits {self.wait_s:g} s for more workers: {len(view.members)} are here, "
            f"elasticity.min_workers = {self.min_workers}; start another torchrun with the same --rdzv-id and endpoint"
        )
