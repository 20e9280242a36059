"""What torchrun users are told when something cannot work, and that it ends instead of looping."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launch_job import ToyJob

FAST = ("--rdzv-conf=suspicion_s=1.0,heartbeat_s=0.1,wait_for_workers_s=3",)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[ToyJob]:
    toy = ToyJob(tmp_path)
    yield toy
    toy.close()


def test_a_worker_with_another_config_is_refused_once_and_the_others_go_on(job: ToyJob):
    good = job.torchrun(1, "1:8", options=FAST)
    pid = job.wait_joined([0])[0]
    other = job.torchrun(1, "1:8", options=FAST, environment={"TOY_DIGEST": "other"})
    assert job.ended(other) == 1
    assert len([event for event in job.events if event["event"] == "refused"]) == 1
    shown = job.output(other)
    assert "toy: refused" in shown
    assert "is not started again" in shown
    assert job.alive() == [pid]
    job.finish()
    assert job.ended(good) == 0


def test_workers_that_cannot_start_end_the_job(job: ToyJob):
    agent = job.torchrun(1, environment={"TOY_FAIL": "1"})
    assert job.ended(agent) == 1
    assert "Traceback" not in job.output(agent)
    assert "failed 5 times in a row before it could join" in job.output(agent)
    assert len(job.events) == 5


def test_port_taken_by_something_else(job: ToyJob):
    with contextlib.closing(socket.create_server(("127.0.0.1", job.port))):
        agent = job.torchrun(1, options=FAST)
        assert job.ended(agent) == 1
    shown = job.output(agent)
    assert str(job.port) in shown
    assert "elaswave: error:" in shown
    assert not job.events


def test_a_node_with_another_secret_stays_out(job: ToyJob):
    good = job.torchrun(1, "1:8", options=FAST)
    pid = job.wait_joined([0])[0]
    bad = job.torchrun(1, "1:8", options=FAST, environment={"ELASWAVE_SECRET": "0" * 32})
    assert job.ended(bad) == 1
    assert "secret" in job.output(bad)
    assert job.alive() == [pid]
    job.finish()
    assert job.ended(good) == 0


def test_wrong_options_are_one_line(job: ToyJob):
    agent = job.torchrun(1, options=["--rdzv-conf=suspicion=1"])
    assert job.ended(agent) == 1
    assert "elaswave: error: --rdzv-conf suspicion = '1': unknown key" in job.output(agent)
    assert "Traceback" not in job.output(agent)


def test_supervisors_stand_in_for_the_agent(job: ToyJob):
    agent = job.torchrun(2, options=FAST, environment={"ELASWAVE_FORCE_SUPERVISE": "1"})
    pids = job.wait_joined(range(2))
    assert "each worker gets a supervisor" in job.output(agent)

    mark = job.mark()
    os.kill(pids[1], signal.SIGKILL)
    replaced = job.wait_joined([1], mark)
    job.wait_view([0, 1], pids[0], mark)
    assert sorted(job.alive()) == sorted([pids[0], replaced[1]])

    agent.kill()
    for pid in (pids[0], replaced[1]):
        job.wait_dead(pid)
