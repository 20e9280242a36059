"""A small process that puts clocks back when the one that set them dies without doing it.

It holds a pidfd of the process it watches, so it learns of any death, SIGKILL too, whoever else has inherited what.
It stands in a session of its own, out of reach of signals to the job's process group; what ends every process of a
container or the machine ends it too. It imports nothing heavy:
`python watchdog.py PIDFD` reads what to undo as JSON lines from its standard input.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

START_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0

Order = dict[str, object]
"""`{"path": ..., "text": ...}` writes a file; `{"nvml": [indices of GPUs]}` resets locked clocks."""


class Watchdog:
    """Undoes what it was told, should this process die; start it before anything is changed.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        watched = os.pidfd_open(os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__)), str(watched)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(watched,),
                start_new_session=True,
            )
        finally:
            os.close(watched)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        if not ready or self._process.stdout.read(1) != b"r":
            self._process.kill()
            self._process.wait()
            raise OSError("the watchdog of the clocks did not start")
        self._owner = os.getpid()

    def tell(self, orders: Sequence[Order]) -> None:
        """Replace what is to be undone; taken in before this returns, by the pipe.

        Raises:
            OSError: the watchdog is gone; change nothing then.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(orders)).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End it without undoing anything; calling it again, or in a fork of this process, does nothing."""
        if self._owner != os.getpid() or self._process.returncode is not None:
            return
        try:
            self.tell([])
            self._process.terminate()
            self._process.wait(CLOSE_TIMEOUT_S)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def carry_out(orders: Sequence[Order]) -> None:
    """Put back what can be put back; one failure does not keep the rest from it."""
    for order in orders:
        try:
            if "path" in order:
                Path(str(order["path"])).write_text(str(order["text"]))
            else:
                _reset_gpus([int(index) for index in order["nvml"]])  # type: ignore[union-attr]
        except (OSError, ValueError, KeyError):
            continue


def _reset_gpus(indices: Sequence[int]) -> None:
    """Through the library itself: what wraps it may not be importable here."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    nvml.nvmlInit_v2()
    for index in indices:
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
            nvml.nvmlDeviceResetGpuLockedClocks(handle)


def watch(watched: int, orders_from: int) -> None:
    """Take in orders until the watched process is dead, then carry out the last ones; returns at its word to end.

    Args:
        watched: pidfd.
        orders_from: descriptor of the JSON lines.
    """
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(orders_from, select.POLLIN)
    text, orders, dead = b"", list[Order](), False
    while not dead:
        happened = dict(poll.poll())
        dead = watched in happened
        if orders_from in happened:
            more = os.read(orders_from, 1 << 16)
            text += more
            *lines, text = text.split(b"\n")
            for line in lines:
                orders = json.loads(line)
            if not more:  # closed: nothing more to hear, but whether the process is alive
                poll.unregister(orders_from)
    while select.select([orders_from], [], [], 0)[0] and (more := os.read(orders_from, 1 << 16)):
        text += more
    *lines, _ = text.split(b"\n")
    for line in lines:
        orders = json.loads(line)
    carry_out(orders)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"r")
    watch(int(sys.argv[1]), 0)


if __name__ == "__main__":
    main()
