"""What a bench starts ends with it: by `close`, and by the kernel when the bench itself is killed."""

import json
import os
import select
import socket

import pytest

from elaswave.bench.forked import Lines, fork, kill
from elaswave.bench.rivals.processes import Processes
from elaswave.errors import BenchError

SCRIPT = """
import json, os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
from elaswave.coordination import bootstrap
bootstrap.die_with_parent()
print("up", flush=True)
import signal
signal.pause()
'''], stdout=subprocess.PIPE)
child.stdout.readline()
with open("pids.new", "w") as file:
    json.dump([os.getpid(), child.pid], file)
os.rename("pids.new", "pids")
signal.pause()
"""


def start(processes: Processes) -> list[int]:
    """A process with a child of its own; returns both pids."""
    (processes.folder / "forever.py").write_text(SCRIPT)
    processes.start("agent", "forever", [], {})
    path = processes.folder / "pids"
    return json.loads(processes.wait(lambda: path.read_text() if path.exists() else None, 60, "start"))


def gone(pidfds: list[int]) -> bool:
    return all(select.select([pidfd], [], [], 20)[0] for pidfd in pidfds)


def test_close_ends_everything_and_removes_the_folder() -> None:
    with Processes() as processes:
        pids = start(processes)
        pidfds = [os.pidfd_open(pid) for pid in pids]
        processes.watch(pids[1])
    assert gone(pidfds)
    assert not processes.folder.exists()
    for pidfd in pidfds:
        os.close(pidfd)


def test_a_process_that_ends_by_itself_is_told_with_its_last_words() -> None:
    with Processes() as processes:
        (processes.folder / "short.py").write_text("raise SystemExit('no torch here')")
        processes.start("agent", "short", [], {})
        with pytest.raises(BenchError, match=r"warm-up: agent ended(.|\n)*no torch here"):
            processes.wait(lambda: None, 60, "warm-up")


def test_an_unknown_worker_is_not_killed() -> None:
    with Processes() as processes, pytest.raises(BenchError, match="gone before"):
        processes.kill(os.getpid())


def test_everything_ends_when_the_bench_is_killed() -> None:
    near, far = socket.socketpair()
    near.settimeout(60)

    def bench() -> None:
        processes = Processes()
        Lines(far).send([str(processes.folder), *start(processes)])
        processes.wait(lambda: None, 60, "for ever")

    pid = fork(bench)
    try:
        folder, *pids = Lines(near).receive()
        pidfds = [os.pidfd_open(one) for one in pids]
    finally:
        kill(pid)
    assert gone(pidfds)
    for pidfd in pidfds:
        os.close(pidfd)
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
    near.close()
    far.close()
