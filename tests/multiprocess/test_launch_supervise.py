"""Supervisors and the death pact, on plain Python children: no torch, no agent."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from elaswave.coordination import bootstrap

TIMEOUT_S = 30.0
CHILD = """
import os, signal, sys
from elaswave.coordination import bootstrap
bootstrap.start()
count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
sys.stdout.write(f"{os.getpid()} {count} {os.environ['ELASWAVE_WORKER_ID']}\\n"); sys.stdout.flush()
%s
"""
WAIT = "signal.pause()"


@contextmanager
def supervised(tmp_path: Path, then: str, restarts: int = 50) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "child.py"
    script.write_text(CHILD % then)
    with started(["elaswave.coordination.supervise", str(script)], restarts) as process:
        yield process


@contextmanager
def started(module: Sequence[str], restarts: int = 50) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "TORCHELASTIC_MAX_RESTARTS": str(restarts), bootstrap.PARENT_PID: str(os.getpid())}
    process = subprocess.Popen(
        [sys.executable, "-m", *module], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], TIMEOUT_S)[0]
    return process.stdout.readline().split()


def dies(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], TIMEOUT_S)[0])
    finally:
        os.close(fd)


def test_a_killed_child_is_replaced_as_a_new_worker(tmp_path: Path):
    with supervised(tmp_path, WAIT) as process:
        first = line(process)
        os.kill(int(first[0]), signal.SIGKILL)
        second = line(process)
        assert second[1] == "1"
        assert first[2] != second[2]


def test_success_ends_the_supervisor(tmp_path: Path):
    with supervised(tmp_path, "sys.exit(0 if count else 66)") as process:
        assert process.wait(TIMEOUT_S) == 0


def test_refused_is_passed_on_and_not_repeated(tmp_path: Path):
    with supervised(tmp_path, "sys.exit(65)") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 65
        assert len(out.splitlines()) == 1
        assert "not started again" in err


def test_the_budget_ends_it(tmp_path: Path):
    with supervised(tmp_path, "os.kill(os.getpid(), 9)", restarts=1) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 128 + signal.SIGKILL
        assert len(out.splitlines()) == 2
        assert "--max-restarts=1" in err


def test_signals_reach_the_child_and_end_both(tmp_path: Path):
    with supervised(tmp_path, WAIT) as process:
        child = int(line(process)[0])
        process.terminate()
        assert process.wait(TIMEOUT_S) == 7
        assert dies(child)


def test_the_child_dies_with_a_killed_supervisor(tmp_path: Path):
    with supervised(tmp_path, WAIT) as process:
        child = int(line(process)[0])
        process.kill()
        assert dies(child)


def test_a_parent_that_is_gone_already_is_noticed():
    env = {**os.environ, bootstrap.PARENT_PID: "1"}
    code = "from elaswave.coordination import bootstrap; bootstrap.start()"
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=TIMEOUT_S)
    assert done.returncode == bootstrap.EXIT_ORPHAN


def test_bootstrap_turns_into_a_supervisor_when_told(tmp_path: Path):
    script = tmp_path / "child.py"
    script.write_text(CHILD % "sys.exit(0 if count else 66)")
    env = {**os.environ, bootstrap.SUPERVISE: "1", bootstrap.PARENT_PID: str(os.getpid())}
    env |= {"TORCHELASTIC_MAX_RESTARTS": "5"}
    done = subprocess.run([sys.executable, str(script)], env=env, timeout=TIMEOUT_S, capture_output=True, text=True)
    assert done.returncode == 0
    assert [words.split()[1] for words in done.stdout.splitlines()] == ["0", "1"]


@pytest.mark.parametrize("module", ["elaswave.coordination.supervise", "elaswave.coordination.bootstrap"])
def test_usage(module: str):
    done = subprocess.run([sys.executable, "-m", module], timeout=TIMEOUT_S, capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage:" in done.stderr
