"""Reads the events of a run folder while they are being written, or after.

Files are told apart by inode, because a worker's file is renamed when it gets its rank.
"""

import json
import os
from pathlib import Path
from typing import Any

from elaswave.telemetry.jsonl import EVENTS_FOLDER

CHUNK_BYTES = 4 << 20
"""Most bytes taken from one file at a time."""


class Follower:
    """Tails every event file of a run.

    Args:
        run_folder: folder of the run; it may not exist yet.

    Attributes:
        run_folder: the same.
        bad_lines: complete lines that were not JSON objects.
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.run_folder = Path(run_folder)
        self.bad_lines = 0
        self._offsets: dict[tuple[int, int], int] = {}

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last call, in order of time; at most `CHUNK_BYTES` of each file. Never blocks.

        A line without its end is left for later: its writer is still at it, or was killed in the middle.
        """
        events: list[dict[str, Any]] = []
        for path in self._files():
            events.extend(self._read(path))
        events.sort(key=_time)
        return events

    def drain(self) -> list[dict[str, Any]]:
        """Everything there is now, in order of time."""
        events: list[dict[str, Any]] = []
        while more := self.poll():
            events.extend(more)
        events.sort(key=_time)
        return events

    def _files(self) -> list[Path]:
        try:
            names = sorted(name for name in os.listdir(self.run_folder / EVENTS_FOLDER) if name.endswith(".jsonl"))
        except OSError:
            return []
        return [self.run_folder / EVENTS_FOLDER / name for name in names]

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                key = (status.st_dev, status.st_ino)
                start = self._offsets.get(key, 0)
                if status.st_size <= start:
                    return []
                file.seek(start)
                data = file.read(CHUNK_BYTES)
        except OSError:  # renamed since it was listed; found under its new name next time
            return []
        end = data.rfind(b"\n") + 1
        if not end and len(data) == CHUNK_BYTES:  # no event is this long: skip the rubbish
            self.bad_lines += 1
            self._offsets[key] = start + len(data)
            return []
        self._offsets[key] = start + end
        return self._parse(data[:end])

    def _parse(self, data: bytes) -> list[dict[str, Any]]:
        events = []
        for line in data.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                events.append(event)
            elif line:
                self.bad_lines += 1
        return events


def _time(event: dict[str, Any]) -> float:
    """Sort key; events without a time come first."""
    t = event.get("t")
    return float(t) if isinstance(t, (int, float)) else 0.0
