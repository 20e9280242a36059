"""The life mutex: a death is told, an orderly end is not, and watchers always end."""

import ctypes
import os
import signal
import threading

import pytest

from elaswave.coordination.life import SIZE, Life, Watch
from elaswave.errors import ProtocolError


def fork_owner(end):
    """A child that holds a life mutex and then ends as `end` does; returns its pid and the descriptor."""
    receive, send = os.pipe()
    # the child makes the memfd; the parent opens it through /proc, as if it had been sent
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        life = Life()
        os.write(send, str(life.descriptor).encode())
        end(life)
        os._exit(0)
    number = int(os.read(receive, 16))
    os.close(receive)
    os.close(send)
    return pid, os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)


def test_a_killed_owner_is_reported():
    pid, descriptor = fork_owner(lambda life: signal.pause())
    died = threading.Event()
    watch = Watch(descriptor, died.set)
    assert not died.is_set()
    os.kill(pid, signal.SIGKILL)
    assert died.wait(10)
    assert watch.join(10)
    os.waitpid(pid, 0)


def test_an_owner_that_exits_without_release_is_reported():
    gate_r, gate_w = os.pipe()
    pid, descriptor = fork_owner(lambda life: os.read(gate_r, 1))
    died = threading.Event()
    watch = Watch(descriptor, died.set)
    os.write(gate_w, b"x")
    assert died.wait(10)
    assert watch.join(10)
    os.waitpid(pid, 0)
    os.close(gate_r)
    os.close(gate_w)


def test_a_death_before_the_watch_is_reported():
    pid, descriptor = fork_owner(lambda life: signal.pause())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    died = threading.Event()
    watch = Watch(descriptor, died.set)
    assert died.wait(10)
    assert watch.join(10)


def test_an_orderly_end_is_not_a_death():
    gate_r, gate_w = os.pipe()
    pid, descriptor = fork_owner(lambda life: (os.read(gate_r, 1), life.release()))
    died = threading.Event()
    watch = Watch(descriptor, died.set)
    os.write(gate_w, b"x")
    assert watch.join(10)
    assert not died.is_set()
    os.waitpid(pid, 0)
    os.close(gate_r)
    os.close(gate_w)


def test_a_cancelled_watch_ends_though_the_owner_lives():
    pid, descriptor = fork_owner(lambda life: signal.pause())
    watch = Watch(descriptor, lambda: None)
    watch.cancel()
    assert watch.join(10)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("size", [0, SIZE, SIZE * 2])
def test_a_page_that_its_sender_could_take_away_is_refused(size):
    descriptor = os.memfd_create("bad")
    os.ftruncate(descriptor, size)
    with pytest.raises(ProtocolError, match="sealed"):
        Watch(descriptor, lambda: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_only_the_main_thread_may_hold_it():
    found = []

    def hold():
        try:
            Life()
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join(10)
    assert "main thread" in str(found[0])
