"""Writes what a node's service reports to `events/node-<id>.jsonl`, once the nodes have agreed on the run folder."""

import collections
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BACKLOG_MAX = 256
"""Events kept while the folder is unknown; the oldest go first."""


class NodeEvents:
    """A sink of `events.Recorder`, for the service's thread. Whatever goes wrong is never raised: a job without its
    log is better than no job.

    Attributes:
        dropped: events that could not be written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backlog: collections.deque[bytes] = collections.deque(maxlen=BACKLOG_MAX)
        self._fd: int | None = None
        self.dropped = 0

    def open(self, run_folder: Path, node_id: str) -> None:
        """From now on events go to that folder, those of before first."""
        folder = run_folder / "events"
        with self._lock:
            self._close()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(folder / f"node-{node_id}.jsonl", flags, 0o644)
            except OSError:
                return
            while self._backlog:
                self._write(self._backlog.popleft())

    def emit(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, separators=(",", ":"), default=str).encode() + b"\n"
        with self._lock:
            if self._fd is None:
                self._backlog.append(line)
            else:
                self._write(line)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, line: bytes) -> None:
        assert self._fd is not None
        try:
            os.write(self._fd, line)
        except OSError:
            self.dropped += 1
