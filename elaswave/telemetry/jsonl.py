"""Writes a process's events to its own file of the run folder, one line and one `write` each.

A line that has been written survives SIGKILL of the process, since the kernel holds it; nobody shares the file, so
at most its last line can be torn.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENTS_FOLDER = "events"

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class JsonlSink:
    """A sink that never raises: what cannot be written is counted, and said once on standard error.

    The file is made by the first event. A worker without a rank (a spare) starts as `worker-<worker_id>.jsonl` and is
    renamed to `rank-<rank>-<worker_id>.jsonl` by its first event that carries a rank; a node writes `node-<id>.jsonl`.

    Args:
        run_folder: folder of the run; made when missing.
        worker_id: the worker that writes; give this or `node_id`.
        node_id: the node's service that writes.

    Attributes:
        path: where events go now, None before the first.
        dropped: events that could not be written.
    """

    def __init__(self, run_folder: str | Path, *, worker_id: str | None = None, node_id: str | None = None) -> None:
        if (worker_id is None) == (node_id is None):
            raise ValueError("give either worker_id or node_id")
        self._folder = Path(run_folder) / EVENTS_FOLDER
        self._worker_id = worker_id
        self._node_id = node_id
        self._fd: int | None = None
        self._named = False
        self._torn = False
        self._closed = False
        self._lock = threading.Lock()
        self.path: Path | None = None
        self.dropped = 0

    def emit(self, event: Mapping[str, Any]) -> None:
        """Append one line; a failure is counted, never raised."""
        try:
            line = _encode(event).encode() + b"\n"
            with self._lock:
                if not self._named:
                    self._name(event.get("rank"))
                self._write(line)
        except Exception as error:  # whatever telemetry does wrong must not end the training
            self._drop(error)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            raise OSError("the sink is closed")
        if self._torn:  # end what a full disk left of an earlier line
            line = b"\n" + line
        written = os.write(self._fd, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(f"only {written} of {len(line)} bytes fitted")

    def _name(self, rank: object) -> None:
        """Open the file, or give it its final name once the rank is known."""
        if self._closed:
            return
        path = self._folder / self._file_name(rank)
        if self._fd is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, _FLAGS, 0o644)
        elif self.path is not None and path != self.path:
            self.path.rename(path)
        self.path = path
        self._named = self._node_id is not None or isinstance(rank, int)

    def _file_name(self, rank: object) -> str:
        if self._node_id is not None:
            return f"node-{self._node_id}.jsonl"
        return f"rank-{rank}-{self._worker_id}.jsonl" if isinstance(rank, int) else f"worker-{self._worker_id}.jsonl"

    def _drop(self, error: Exception) -> None:
        self.dropped += 1
        if self.dropped > 1:
            return
        try:
            where = self.path or self._folder
            sys.stderr.write(f"elaswave: events are being lost, {where} cannot be written: {error}\n")
        except Exception:  # standard error may be closed as well
            return
