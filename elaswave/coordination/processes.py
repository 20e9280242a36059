"""What Linux tells about processes: their state, their start, their end, and the machine they run on."""

import contextlib
import os
import signal
from hashlib import sha256
from pathlib import Path

_STOPPED = frozenset("tT")


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/pid/stat from the third (state) on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def is_stopped(pid: int) -> bool:
    """In state T: stopped by a signal, or by a debugger."""
    fields = _stat(pid)
    return fields is not None and fields[0] in _STOPPED


def started_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when there is none. With the pid, it names a process."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[19])


def open_process(pid: int, ticks: int = 0) -> int | None:
    """A pidfd, which becomes readable when the process ends; None when it has ended or is another one.

    Args:
        ticks: start time that the process must have; 0 accepts any.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    if ticks and started_ticks(pid) != ticks:
        os.close(descriptor)
        return None
    return descriptor


def kill(descriptor: int) -> None:
    """SIGKILL the process behind a pidfd, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def kill_session(pid: int) -> None:
    """SIGKILL a process and all that it started, if it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def host_id() -> str:
    """The machine: boot id and network namespace. Processes with equal ids can share memory and loopback."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/net").st_ino
    return sha256(f"{boot}:{namespace}".encode()).hexdigest()[:12]
