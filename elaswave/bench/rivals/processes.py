"""The processes of one repetition: started in groups of their own, ended by the pids that were started or announced."""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from elaswave.bench.rivals import tied
from elaswave.clock import Deadline
from elaswave.coordination import bootstrap
from elaswave.errors import BenchError

STOP_TIMEOUT_S = 20.0
TICK_S = 0.1
"""Between looks; the figures come from the workers' own stamps."""
TAIL_BYTES = 2000
_OWN = ("ELASWAVE_", "PET_", "TORCHELASTIC_", "MASTER_", "TORCHFT_")
"""Beginnings of variables that describe this process or another job."""

Found = TypeVar("Found")


class Processes:
    """A folder, what runs in it, and the end of both.

    Every process that is started ends when this one does, because it asks the kernel for that first.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="elaswave-bench-"))
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._watched: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run `python -m module arguments`, tied to this process's life; its output goes to a file."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OWN)}
        with (self.folder / f"{name}.out").open("ab") as output:
            self._started[name] = subprocess.Popen(
                [sys.executable, "-m", tied.__name__, module, *arguments],
                env={**inherited, "OMP_NUM_THREADS": "1", bootstrap.PARENT_PID: str(os.getpid()), **environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def watch(self, pid: int) -> None:
        """Remember a worker that one of the processes has started."""
        if pid not in self._watched:
            try:
                self._watched[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                return

    def kill(self, pid: int) -> float:
        """SIGKILL a watched worker; returns the wall seconds just before."""
        if pid not in self._watched:
            raise BenchError(f"worker {pid} was gone before it could be killed")
        before = time.time()
        signal.pidfd_send_signal(self._watched[pid], signal.SIGKILL)
        return before

    def wait(self, look: Callable[[], Found | None], timeout_s: float, what: str) -> Found:
        """The first thing other than None that `look` finds.

        Raises:
            BenchError: it took too long, or a process ended by itself; tells the end of what they have printed.
        """
        deadline = Deadline(timeout_s)
        while (found := look()) is None:
            ended = [name for name, process in self._started.items() if process.poll() is not None]
            if deadline.passed() or ended:
                why = f"{', '.join(ended)} ended" if ended else f"not within {timeout_s:g} s"
                raise BenchError(f"{what}: {why}\n{self._story()}")
            time.sleep(TICK_S)
        return found

    def close(self) -> None:
        """Kill everything, wait until it is gone, and remove the folder."""
        for process in self._started.values():
            process.kill()
        for process in self._started.values():
            process.wait()
        deadline = Deadline(STOP_TIMEOUT_S)
        for fd in self._watched.values():  # they die with their agents; a worker that did not ask for that is killed
            if not select.select([fd], [], [], min(1.0, deadline.left_s()))[0]:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self._watched.clear()
        self._started.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _story(self) -> str:
        parts = []
        for name in self._started:
            text = (self.folder / f"{name}.out").read_bytes()[-TAIL_BYTES:].decode(errors="replace")
            parts.append(f"--- {name}\n{text}")
        return "\n".join(parts)
