"""A command on a terminal of its own, as a person sees and interrupts it."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from elaswave.clock import Deadline

CTRL_C = b"\x03"
SHOWS_CURSOR, HIDES_CURSOR = "\x1b[?25h", "\x1b[?25l"
LOOK_S = 0.05


def _take_terminal() -> None:
    """Have Ctrl-C reach the command as a signal, also when we were started in the background, where it is ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command on a pseudo-terminal.

    Args:
        size: rows and columns.

    Attributes:
        raw: everything the command has written, escape sequences included.
    """

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], size: tuple[int, int] = (40, 100)
    ) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self._bytes = b""

    @property
    def raw(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def text(self) -> str:
        """Without escape sequences and carriage returns."""
        return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", self.raw)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_text(self, pattern: str, timeout_s: float) -> None:
        """Wait until the command has shown what the regular expression describes."""
        deadline = Deadline(timeout_s)
        while re.search(pattern, self.text) is None:
            assert not deadline.passed(), f"{pattern!r} not shown within {timeout_s} s:\n{self.text}"
            assert self._read(), f"{pattern!r} not shown before the end:\n{self.text}"

    def wait_end(self, timeout_s: float) -> int:
        """Exit status of the command, read to its last line."""
        deadline = Deadline(timeout_s)
        while self._read():
            assert not deadline.passed(), f"still running after {timeout_s} s:\n{self.text}"
        return self.process.wait(max(1.0, deadline.left_s()))

    def _read(self) -> bool:
        """Take in what there is; false at the end."""
        if select.select([self._ours], [], [], LOOK_S)[0]:
            try:
                self._bytes += os.read(self._ours, 1 << 16)
            except OSError:  # how a terminal says that nobody holds its other end any more
                return False
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
