"""What this machine offers to a job, as facts: looked up once, judged elsewhere."""

import ctypes
import errno
import importlib.metadata
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
HANDLERS = "torchrun.handlers"
_TIMEX_BYTES = 512  # more than the kernel's structure takes on any platform
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Facts; None where the system does not tell.

    Attributes:
        platform: as `sys.platform` has it.
        python: major and minor version.
        torch: version of the installed torch; None without one.
        torch_too_old: why it cannot be used at all.
        torch_lacks: names inside torch that the launcher would use and cannot, one line each.
        has_gloo: torch's own gloo is there, which only benches use.
        has_nccl: torch was built with NCCL.
        handlers: names of the rendezvous back ends that torchrun finds.
        pidfd: deaths of processes can be waited for.
        memfd: memory can be shared between workers.
        loopback: why no connection to 127.0.0.1 could be made; empty when one was.
        address: why this host's own name has no address; empty when it has.
        port: what was asked for.
        port_problem: why it cannot be listened on; empty when it can.
        huge_pages: `always`, `madvise` or `never`.
        clock_source: of the kernel.
        synchronized: the wall clock follows another one.
        open_files: how many one process may have.
        cores: that this process may run on.
        folder: where runs would go.
        free_bytes: on its disk; None when it cannot be written.
    """

    platform: str
    python: tuple[int, int]
    torch: str | None
    torch_too_old: str | None
    torch_lacks: tuple[str, ...]
    has_gloo: bool
    has_nccl: bool
    handlers: tuple[str, ...]
    pidfd: bool
    memfd: bool
    loopback: str
    address: str
    port: int | None
    port_problem: str
    huge_pages: str | None
    clock_source: str | None
    synchronized: bool | None
    open_files: int
    cores: int
    folder: str
    free_bytes: int | None


def look(folder: Path, port: int | None) -> Machine:
    """This machine as it is now; changes nothing.

    Args:
        folder: where runs would go.
        port: that a coordinator would listen on; None for any.
    """
    torch, too_old, lacks, has_gloo, has_nccl = _torch()
    return Machine(
        platform=sys.platform,
        python=sys.version_info[:2],
        torch=torch,
        torch_too_old=too_old,
        torch_lacks=lacks,
        has_gloo=has_gloo,
        has_nccl=has_nccl,
        handlers=tuple(sorted(one.name for one in importlib.metadata.entry_points(group=HANDLERS))),
        pidfd=_pidfd(),
        memfd=_memfd(),
        loopback=_problem(_connect),
        address=_problem(lambda: socket.getaddrinfo(socket.gethostname(), None)),
        port=port,
        port_problem="" if port is None else _problem(lambda: _listen(port)),
        huge_pages=_chosen(_text(HUGE_PAGES)),
        clock_source=_text(CLOCK_SOURCE),
        synchronized=_synchronized(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        folder=str(folder),
        free_bytes=_free_bytes(folder),
    )


def _torch() -> tuple[str | None, str | None, tuple[str, ...], bool, bool]:
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError):
        return None, None, (), False, False
    from elaswave.coordination import torch_contract

    too_old = torch_contract.too_old()
    lacks = () if too_old else tuple(torch_contract.problems())
    there = dist.is_available()
    return torch.__version__, too_old, lacks, there and dist.is_gloo_available(), there and dist.is_nccl_available()


def _problem(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _connect() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        socket.create_connection(server.getsockname(), timeout=_CONNECT_TIMEOUT_S).close()


def _listen(port: int) -> None:
    socket.create_server(("", port)).close()


def _pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _memfd() -> bool:
    try:
        os.close(os.memfd_create("elaswave-doctor"))
    except (AttributeError, OSError):
        return False
    return True


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip()
    return None


def _chosen(line: str | None) -> str | None:
    """The word in brackets."""
    return line.partition("[")[2].partition("]")[0] or None if line else None


def _synchronized() -> bool | None:
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _free_bytes(folder: Path) -> int | None:
    """Free space of the disk on which the folder is or would be made."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "no permission")
        return shutil.disk_usage(place).free
    except OSError:
        return None
