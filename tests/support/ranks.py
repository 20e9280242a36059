"""Forked ranks with a mesh each: the parent hands out addresses and plays the coordinator over a socket pair."""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from elaswave.communicator.group import Group, GroupSpec
from elaswave.communicator.mesh import Mesh
from elaswave.config import Transport

PR_SET_PDEATHSIG = 1
SECRET = b"0" * 32
HOSTS = {"shm": lambda rank: "host", "tcp": lambda rank: "host", "mixed": lambda rank: f"host-{rank // 2}"}


def worker_id(rank: int) -> str:
    return f"{rank:012x}"


class Rank:
    """What the body of a forked rank is given."""

    def __init__(self, rank: int, size: int, link: socket.socket, transport: str, timeout_s: float) -> None:
        self.rank, self.size, self._link = rank, size, link
        kind = Transport.TCP if transport == "tcp" else Transport.AUTO
        self.mesh = Mesh(
            worker_id=worker_id(rank),
            host_id=HOSTS[transport](rank),
            secret=SECRET,
            transport=kind,
            timeout_s=timeout_s,
        )
        self.addresses: dict[str, dict] = {}
        self._orders: list[dict] = []
        self._buffer = b""
        link.setblocking(False)
        self.mesh.attach(link.fileno(), self._on_readable)
        self.tell(address=self.mesh.address)

    def tell(self, **message: Any) -> None:
        """Send the parent a JSON line."""
        self._link.sendall(json.dumps(message).encode() + b"\n")

    def _on_readable(self) -> None:
        data = self._link.recv(1 << 16)
        if not data:
            os._exit(3)
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            order = json.loads(line)
            self._orders.append(order)
            self.mesh.interrupt(order["epoch"])

    def enter(self) -> Group:
        """Wait for the parent's next view and enter the newest: one group `world` of all members."""
        self.mesh.epoch, before = 1 << 30, self.mesh.epoch  # no view interrupts the wait for a view
        try:
            self.mesh.wait(lambda: bool(self._orders), 30)
        finally:
            self.mesh.epoch = before
        order = self._orders[-1]
        self._orders.clear()
        slots = tuple(order["slots"]) if order.get("slots") else None
        self.mesh.edit(order["epoch"], order["addresses"], {"world": GroupSpec(tuple(order["members"]), slots)})
        return self.mesh.group("world")


@dataclass
class Ranks:
    """The parent's side."""

    pids: list[int] = field(default_factory=list)
    links: list[socket.socket] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=list)
    inbox: list[list[dict]] = field(default_factory=list)
    addresses: dict[str, dict] = field(default_factory=dict)
    epoch: int = 0

    def read(self, rank: int, timeout_s: float = 40.0) -> dict | None:
        """The next message of a rank; None when it is gone."""
        end = time.monotonic() + timeout_s
        while not self.inbox[rank]:
            ready, _, _ = select.select([self.links[rank]], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"rank {rank} says nothing for {timeout_s} s")
            data = self.links[rank].recv(1 << 16)
            if not data:
                return None
            *lines, self.buffers[rank] = (self.buffers[rank] + data).split(b"\n")
            self.inbox[rank] += [json.loads(line) for line in lines]
        return self.inbox[rank].pop(0)

    def result(self, rank: int) -> Any:
        """What the body of `rank` returned; its failure fails the test."""
        while (message := self.read(rank)) is not None:
            if "failed" in message:
                raise AssertionError(f"rank {rank}:\n{message['failed']}")
            if "result" in message:
                return message["result"]
        raise AssertionError(f"rank {rank} ended without a result")

    def view(self, ranks: Sequence[int], slots: Sequence[int] | None = None) -> None:
        """Announce a new view to its members."""
        self.epoch += 1
        order = {
            "epoch": self.epoch,
            "members": [worker_id(rank) for rank in ranks],
            "addresses": {worker_id(rank): self.addresses[worker_id(rank)] for rank in ranks},
            "slots": [worker_id(rank) for rank in slots] if slots is not None else None,
        }
        for rank in ranks:
            self.links[rank].sendall(json.dumps(order).encode() + b"\n")

    def kill(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGKILL)
        os.waitpid(self.pids[rank], 0)
        self.pids[rank] = 0

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *exc: object) -> None:
        for link in self.links:
            link.close()
        for pid in filter(None, self.pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(pid, 0)


def start(size: int, body: Callable[[Rank], Any], *, transport: str = "shm", timeout_s: float = 30.0) -> Ranks:
    """Fork `size` ranks that run `body`, and learn their addresses."""
    ranks = Ranks()
    sys.stdout.flush()
    for rank in range(size):
        near, far = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            near.close()
            for link in ranks.links:
                link.close()
            _run(rank, size, far, body, transport, timeout_s)
        far.close()
        ranks.pids.append(pid)
        ranks.links.append(near)
        ranks.buffers.append(b"")
        ranks.inbox.append([])
    for rank in range(size):
        message = ranks.read(rank)
        assert message is not None
        if "failed" in message:
            raise AssertionError(message["failed"])
        ranks.addresses[worker_id(rank)] = message["address"]
    return ranks


def _run(
    rank: int, size: int, link: socket.socket, body: Callable[[Rank], Any], transport: str, timeout_s: float
) -> None:
    torch.set_num_threads(1)  # more threads than cores only wait for one another
    try:
        me = Rank(rank, size, link, transport, timeout_s)
        me.tell(result=body(me))
        me.mesh.detach()
        link.setblocking(True)
        link.recv(1)  # stay until the parent has seen every result: peers may still read from this rank
        me.mesh.close()
    except BaseException:
        try:
            link.setblocking(True)
            link.sendall(json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
        except OSError:
            pass
    finally:
        os._exit(0)
