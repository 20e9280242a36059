"""A death notice that does not wait for the kernel to free the victim's memory.

After SIGKILL the kernel first tears down the address space (0.15 to 0.3 s per resident GiB) and only then closes
sockets and reports the exit. Robust futexes are released before that (https://docs.kernel.org/locking/robust-futexes.html):
a worker's main thread holds a robust, process-shared mutex, and whoever waits for it is told at once.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable

from elaswave.clock import SYSTEM
from elaswave.errors import ProtocolError

SIZE = mmap.PAGESIZE
POLL_S = 1.0
"""A watcher looks this often whether it is still wanted; deaths are reported at once all the same."""

_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_MUTEXATTR_BYTES = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_PAGES: list[mmap.mmap] = []
"""Pages of abandoned mutexes are never unmapped while a thread may wait in them."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _map(descriptor: int) -> tuple[mmap.mmap, ctypes.c_void_p]:
    page = mmap.mmap(descriptor, SIZE)
    return page, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))


def _check(code: int, what: str) -> None:
    if code:
        raise OSError(code, f"{what}: {os.strerror(code)}")


class Life:
    """The mutex that a worker's main thread holds for as long as it lives.

    Attributes:
        descriptor: memfd to be sent to the watcher.
    """

    def __init__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the main thread must hold the life mutex: it is released when its thread ends")
        self.descriptor = os.memfd_create("elaswave-life", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, SIZE)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._page, self._mutex = _map(self.descriptor)
        attributes = ctypes.create_string_buffer(_MUTEXATTR_BYTES)
        _check(_libc.pthread_mutexattr_init(attributes), "pthread_mutexattr_init")
        _check(_libc.pthread_mutexattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED), "pthread_mutexattr_setpshared")
        _check(_libc.pthread_mutexattr_setrobust(attributes, _PTHREAD_MUTEX_ROBUST), "pthread_mutexattr_setrobust")
        _check(_libc.pthread_mutex_init(self._mutex, attributes), "pthread_mutex_init")
        _check(_libc.pthread_mutex_lock(self._mutex), "pthread_mutex_lock")
        # the kernel walks the list of held mutexes at the end of the thread: the page must stay mapped
        _PAGES.append(self._page)
        self._held = True

    def release(self) -> None:
        """End in an orderly way: the watcher is told that nobody died."""
        if self._held:
            self._held = False
            _libc.pthread_mutex_unlock(self._mutex)
            os.close(self.descriptor)


class Watch:
    """Waits in a thread of its own for the end of the life behind `descriptor`, which it closes.

    Args:
        on_death: called from that thread when the owner died without releasing.

    Raises:
        ProtocolError: the descriptor is not a sealed page, which whoever sent it could take away again.
    """

    def __init__(self, descriptor: int, on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._cancelled = False
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if seals & _SEALS != _SEALS or os.fstat(descriptor).st_size != SIZE:
                raise ProtocolError("the life mutex must be a sealed page")
            self._page, self._mutex = _map(descriptor)
        except OSError as error:
            raise ProtocolError(f"the life mutex cannot be mapped: {error.strerror}") from error
        finally:
            os.close(descriptor)
        self._thread = threading.Thread(target=self._wait, name="elaswave-life", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stop watching; the thread ends within `POLL_S`."""
        self._cancelled = True

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _wait(self) -> None:
        try:
            self._wait_for_owner()
        finally:
            self._page.close()

    def _wait_for_owner(self) -> None:
        while not self._cancelled:
            until = SYSTEM.wall() + POLL_S  # pthread_mutex_timedlock counts in wall time
            limit = _Timespec(int(until), int(until % 1 * 1e9))
            code = _libc.pthread_mutex_timedlock(self._mutex, ctypes.byref(limit))
            if code == errno.ETIMEDOUT:
                continue
            if code == errno.EOWNERDEAD and not self._cancelled:
                self._on_death()
            if code == errno.EOWNERDEAD:
                _libc.pthread_mutex_consistent(self._mutex)
            if code in (0, errno.EOWNERDEAD):
                _libc.pthread_mutex_unlock(self._mutex)
            return
