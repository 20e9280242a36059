"""How soon a blocked survivor is freed when a rank dies that it does not even talk to.

Three workers each wait for a message from another one that is alive and silent; the fourth, which holds 1 GiB, is
killed with SIGKILL. The real control plane carries the news: the node's service learns of the death from a robust
mutex, decides on a new view, and sends it to the workers, whose waits then end. The kernel frees a victim's memory
before it closes its sockets, so what a socket or a pidfd would have told is measured beside it.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from elaswave.bench.forked import Rank, fork, kill, run_ranks
from elaswave.bench.local_node import local_node
from elaswave.bench.result import Spread, Target, below, paired_ratios, spread
from elaswave.clock import Deadline
from elaswave.communicator.group import GroupSpec
from elaswave.communicator.mesh import Mesh
from elaswave.coordination.agent import Agent
from elaswave.coordination.secret import job_secret
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import BenchError, PeerLost
from elaswave.topology import View, lost_between

SURVIVORS = 3
VICTIM_BYTES = 1 << 30
RUN_ID = "bench-freed"
TIMEOUT_S = 30.0
SETTLE_S = 0.05
"""From the moment all survivors are about to wait until the kill: all of them are blocked by then."""
MUTEX, EOF, PIDFD = "freed by the control plane", "socket end of file", "pidfd"


def measure(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Contender -> metric -> milliseconds since the SIGKILL, one value per repetition."""
    found = [_once() for _ in range(repetitions)]
    return {
        MUTEX: {
            "freed_ms": [1e3 * (one["freed"] - one["killed"]) for one in found],
            "recovered_ms": [1e3 * (one["recovered"] - one["killed"]) for one in found],
        },
        EOF: {"seen_ms": [1e3 * (one["eof"] - one["killed"]) for one in found]},
        PIDFD: {"seen_ms": [1e3 * (one["pidfd"] - one["killed"]) for one in found]},
    }


def ratios_of(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Spread]:
    freed = measured[MUTEX]["freed_ms"]
    return {f"{name} / freed": spread(paired_ratios(measured[name]["seen_ms"], freed)) for name in (EOF, PIDFD)}


def targets_of(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Target]:
    return [below("freed from a live silent peer, ms", spread(measured[MUTEX]["freed_ms"]).median, 20)]


def _once() -> dict[str, float]:
    """One job, one kill."""
    with local_node(RUN_ID, SURVIVORS + 1, Timeouts()) as environment:
        *survivors, killer = run_ranks(SURVIVORS + 1, lambda me: _rank(me, environment), TIMEOUT_S)
    slowest = {name: max(survivor[name] for survivor in survivors) for name in ("freed", "recovered")}
    return {**slowest, **killer}


def _rank(me: Rank, environment: Mapping[str, str]) -> dict[str, float]:
    os.environ.update(environment)
    torch.set_num_threads(1)
    return _survivor(me) if me.rank < SURVIVORS else _killer(me)


class Worker:
    """A member of the job: one group of everybody, and the newest view."""

    def __init__(self) -> None:
        self.agent = Agent.connect(deadline=Deadline(TIMEOUT_S))
        self.mesh = Mesh(
            worker_id=self.agent.worker_id,
            host_id=self.agent.host_id,
            secret=job_secret(RUN_ID),
            timeout_s=TIMEOUT_S,
        )
        self.applied: View | None = None
        self.agent.on_view = self._on_view
        view = self.agent.join(
            address=self.mesh.address, config_digest="bench", versions={}, deadline=Deadline(TIMEOUT_S)
        )
        self.mesh.attach(self.agent.fileno(), self.agent.on_readable)
        self.enter(view)

    def _on_view(self, view: View) -> None:
        if self.applied is not None and lost_between(self.applied, view):
            self.mesh.interrupt(view.epoch)

    def enter(self, view: View) -> None:
        """Edit the communicator to this view, and use it once."""
        self.applied = view
        addresses = {member.worker_id: member.address for member in view.members}
        self.mesh.edit(view.epoch, addresses, {"world": GroupSpec(view.worker_ids())})
        self.mesh.group("world").all_reduce(torch.ones(1024))


def _survivor(me: Rank) -> dict[str, float]:
    worker = Worker()
    group = worker.mesh.group("world")
    names = me.exchange(worker.agent.worker_id)
    peer = group.members.index(names[(me.rank + 1) % SURVIVORS])
    me.meet()
    try:
        group.recv(torch.empty(1024), peer)
    except PeerLost:
        freed = time.monotonic()
    else:
        raise BenchError("a silent peer has sent something")
    worker.enter(worker.agent.newest)
    recovered = time.monotonic()
    me.meet()
    return {"freed": freed, "recovered": recovered}


def _killer(me: Rank) -> dict[str, float]:
    """Runs the victim as its child, kills it, and watches how else its death could have been noticed."""
    near, far = socket.socketpair()
    near.settimeout(TIMEOUT_S)
    pid = fork(lambda: _victim(near, far))
    far.close()
    try:
        if not near.recv(1):
            raise BenchError("the victim ended too early")
        me.exchange()
        start = me.meet()
        time.sleep(max(0.0, start + SETTLE_S - time.monotonic()))
        return _kill(pid, near, me)
    finally:
        near.close()
        kill(pid)


def _kill(pid: int, link: socket.socket, me: Rank) -> dict[str, float]:
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(link, select.POLLIN)
    names, found = {pidfd: "pidfd", link.fileno(): "eof"}, {"killed": time.monotonic()}
    os.kill(pid, signal.SIGKILL)
    deadline = Deadline(TIMEOUT_S)
    while len(found) < 3 and not deadline.passed():
        for fd, _ in poller.poll(deadline.left_s() * 1000):
            found[names[fd]] = time.monotonic()
            poller.unregister(fd)
    os.close(pidfd)
    me.meet()
    return found


def _victim(near: socket.socket, far: socket.socket) -> None:
    near.close()
    memory: Any = bytearray(VICTIM_BYTES)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = bytes(len(memory[:: os.sysconf("SC_PAGE_SIZE")]))
    worker = Worker()
    far.sendall(b"1")
    worker.mesh.wait(lambda: False)
