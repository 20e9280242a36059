"""The agent of a job without a launcher: one process, one view, nobody to lose."""

import os
import secrets
from collections.abc import Callable, Mapping

from elaswave.clock import Deadline
from elaswave.errors import DeadlineExceeded
from elaswave.topology import Member, View


class SoloAgent:
    """Stands in for `coordination.agent.Agent` when a script is started by hand."""

    def __init__(self) -> None:
        self.worker_id = secrets.token_hex(6)
        self.node_id = "solo"
        self.host_id = "solo"
        self.rank = 0
        self.leaving = False
        self.on_view: Callable[[View], None] | None = None
        self._view: View | None = None

    def join(
        self, *, address: Mapping[str, object], config_digest: str, versions: Mapping[str, str], deadline: Deadline
    ) -> View:
        """Return the only view there will be."""
        member = Member(
            rank=0,
            worker_id=self.worker_id,
            node_id=self.node_id,
            host_id=self.host_id,
            pid=os.getpid(),
            address=address,
        )
        self._view = View(epoch=1, members=(member,), reason="one process")
        if self.on_view is not None:
            self.on_view(self._view)
        return self._view

    @property
    def newest(self) -> View:
        """The only view; only after `join`."""
        if self._view is None:
            raise RuntimeError("no view before join()")
        return self._view

    def fileno(self) -> int | None:
        return None

    def on_readable(self) -> None:
        """Nothing ever arrives."""

    def wait_view(self, newer_than: int, deadline: Deadline) -> View:
        raise DeadlineExceeded(f"no view after {newer_than}: this job has one process and no launcher")

    def progress(self, step: int, stage: str) -> None:
        """Nobody watches."""

    def suspect(self, worker_id: str, why: str) -> None:
        """There is nobody to suspect."""

    def depart(self) -> None:
        """Nobody is told."""

    def finish(self) -> None:
        """Nobody is told."""

    def close(self) -> None:
        """Nothing is open."""
