"""Forked ranks for measurements: they start every repetition at one agreed instant, and none outlives the bench.

Between repetitions ranks block on a socket to their parent, so that those which are done, or take no part, cost the
others nothing. CLOCK_MONOTONIC is shared by all processes of a machine, so their readings compare.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from elaswave.clock import Deadline
from elaswave.errors import BenchError

LEAD_S = 0.025
"""From the parent's word until all ranks start: long enough for each of them to be awake and sleeping."""
CHUNK_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


def fork(body: Callable[[], None]) -> int:
    """Fork a child that runs `body` and dies with this thread; returns its pid."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() == parent:
            body()
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def kill(pid: int) -> None:
    """SIGKILL a child and wait for its end."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


class Lines:
    """JSON values over a socket, one per line."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._rest = b""
        self._whole: list[Any] = []

    def send(self, value: Any) -> None:
        self.link.sendall(json.dumps(value).encode() + b"\n")

    def receive(self) -> Any:
        """The next value; None when the other end is gone.

        Raises:
            TimeoutError: the socket's own timeout has passed.
        """
        while not self._whole:
            data = self.link.recv(CHUNK_BYTES)
            if not data:
                return None
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._whole = [json.loads(line) for line in whole]
        return self._whole.pop(0)


class Rank:
    """What the body of a forked rank is given.

    Attributes:
        rank, size: this rank, and how many there are.
    """

    def __init__(self, rank: int, size: int, link: socket.socket, timeout_s: float) -> None:
        self.rank, self.size = rank, size
        link.settimeout(timeout_s)
        self._lines = Lines(link)

    def exchange(self, value: Any = None) -> list[Any]:
        """Everybody's value, in order of rank; everybody must call it. Returns at the same instant for all."""
        self._meet(value)
        return self._values

    def meet(self) -> float:
        """Wait for all ranks; returns the instant, monotonic seconds, at which all of them go on."""
        return self._meet(None)

    def _meet(self, value: Any) -> float:
        self._lines.send({"meet": value})
        answer = self._lines.receive()
        if answer is None:
            os._exit(0)
        self._values = answer["values"]
        start = float(answer["start"])
        while (left := start - time.monotonic()) > 0:
            time.sleep(left)
        return start

    def finish(self, result: Any) -> None:
        """Hand the result over, and stay until all have done so."""
        self._lines.send({"result": result})
        self._lines.receive()

    def fail(self, message: str) -> None:
        """Tell the parent why this rank ends, unless it has ended all ranks already."""
        with suppress(OSError):
            self._lines.send({"failed": message})


@dataclass
class _Ranks:
    """The parent's side."""

    pids: list[int] = field(default_factory=list)
    lines: list[Lines] = field(default_factory=list)

    def close(self) -> None:
        for lines in self.lines:
            lines.link.close()
        for pid in self.pids:
            kill(pid)


def run_ranks(size: int, body: Callable[[Rank], Any], timeout_s: float) -> list[Any]:
    """Run `body` in `size` forked ranks and return what each returned; JSON values only.

    Call it before this process has started threads.

    Args:
        size: number of ranks.
        body: what each runs.
        timeout_s: for all of it.

    Raises:
        BenchError: a rank failed, died, or was not done in time; the others have been killed.
    """
    ranks = _Ranks()
    try:
        for rank in range(size):
            near, far = socket.socketpair()
            inherited = [*ranks.lines, Lines(near)]
            ranks.pids.append(
                fork(lambda rank=rank, far=far, links=inherited: _child(rank, size, far, links, body, timeout_s))
            )
            ranks.lines.append(Lines(near))
            far.close()
        return _conduct(ranks.lines, Deadline(timeout_s))
    finally:
        ranks.close()


def _child(
    rank: int, size: int, link: socket.socket, inherited: Sequence[Lines], body: Callable[[Rank], Any], timeout_s: float
) -> None:
    for lines in inherited:
        lines.link.close()
    gc.freeze()  # a collection that walks the parent's heap would copy every page of it
    me = Rank(rank, size, link, timeout_s)
    try:
        me.finish(body(me))
    except BaseException:
        me.fail(traceback.format_exc())


def _conduct(lines: Sequence[Lines], deadline: Deadline) -> list[Any]:
    """Answer the ranks' meetings until all have a result."""
    results: dict[int, Any] = {}
    met: dict[int, Any] = {}
    while len(results) < len(lines):
        for rank in _ready(lines, deadline):
            message = lines[rank].receive()
            if message is None:
                raise BenchError(f"rank {rank} died")
            if "failed" in message:
                raise BenchError(f"rank {rank}:\n{message['failed']}")
            if "result" in message:
                results[rank] = message["result"]
            else:
                met[rank] = message["meet"]
        if len(met) == len(lines):
            answer = {"values": [met[rank] for rank in range(len(lines))], "start": time.monotonic() + LEAD_S}
            met.clear()
            for one in lines:
                one.send(answer)
    return [results[rank] for rank in range(len(lines))]


def _ready(lines: Sequence[Lines], deadline: Deadline) -> list[int]:
    by_fd = {one.link.fileno(): rank for rank, one in enumerate(lines)}
    poller = select.poll()
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    ready = poller.poll(deadline.left_s() * 1000)
    if not ready:
        raise BenchError(f"the ranks were not done after {deadline.timeout_s:g} s")
    return [by_fd[fd] for fd, _ in ready]


@contextmanager
def store_server(timeout_s: float) -> Iterator[int]:
    """A c10d store in a process of its own; yields its port."""
    reader, writer = os.pipe()
    pid = fork(lambda: _serve_store(writer, timeout_s))
    os.close(writer)
    try:
        port = os.read(reader, 16)
        if not port:
            raise BenchError("the store did not start")
        yield int(port)
    finally:
        os.close(reader)
        kill(pid)


def _serve_store(writer: int, timeout_s: float) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    os.write(writer, str(store.port).encode())
    signal.pause()
