"""Whom a primary turns away: workers that were started with something else, come back too late, or after the end."""

from dataclasses import dataclass, field

from elaswave.coordination.compatibility import mismatch
from elaswave.coordination.coordinator_events import Send
from elaswave.coordination.protocol import Fence, Turn, Turned, WorkerRecord
from elaswave.topology import View

Reported = list[tuple[str, WorkerRecord]]
"""Workers with the ids of their nodes."""


@dataclass(slots=True)
class Admission:
    """What newcomers are compared with, and who has been told off already.

    Attributes:
        turned: ids of the workers that were turned away.
    """

    turned: set[str] = field(default_factory=set)
    _reference: WorkerRecord | None = None
    _checked: set[str] = field(default_factory=set)

    def check(self, reported: Reported) -> list[Send]:
        """Turn away who was started with something else than the members, or else the first one, were."""
        if self._reference is None:
            ordered = sorted((worker for _, worker in reported), key=lambda worker: not worker.member)
            self._reference = ordered[0] if ordered else None
        out = []
        for node_id, worker in reported:
            if worker.member or worker.worker_id in self._checked or self._reference is None:
                continue
            self._checked.add(worker.worker_id)
            reason = mismatch(self._reference, worker)
            if reason is not None:
                self.turned.add(worker.worker_id)
                out.append(Send(node_id, Turned(turn=Turn.REFUSED, reason=reason, worker_id=worker.worker_id)))
        return out

    def turn_away(self, view: View, reported: Reported) -> list[Send]:
        """Fence members of older views that are back too late; dismiss who comes after the end."""
        members, out = set(view.worker_ids()), []
        for node_id, worker in reported:
            if worker.worker_id in members or worker.worker_id in self.turned:
                continue
            if worker.member:
                self.turned.add(worker.worker_id)
                reason = f"view {view.epoch} goes on without worker {worker.worker_id}"
                out.append(Send(node_id, Fence(worker_id=worker.worker_id, reason=reason)))
            elif view.finished:
                self.turned.add(worker.worker_id)
                reason = "the job has done its last step"
                out.append(Send(node_id, Turned(turn=Turn.DISMISSED, reason=reason, worker_id=worker.worker_id)))
        return out
