"""`elaswave launch` with toy workers: where it tells the run folder, how it stops, and what it says when it waits."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launch_job import ToyJob

LAUNCH = """
import sys
from elaswave.cli import launch, main
launch.WORKER_MODULE = "support.toy_worker"
sys.exit(main.main(["launch", *sys.argv[1:]]))
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[ToyJob]:
    toy = ToyJob(tmp_path)
    yield toy
    toy.close()


def launch(job: ToyJob, *arguments: str, settings: str = "") -> subprocess.Popen[bytes]:
    config = job.folder / "toy.toml"
    config.write_text(
        f'[run]\nname = "toy"\n[elasticity]\nheartbeat_s = 0.1\nsuspicion_s = 1.0\nspares = 0\n{settings}'
    )
    return job.start([sys.executable, "-c", LAUNCH, str(config), *arguments])


def test_runs_to_the_end_through_a_lost_worker_and_a_lost_agent(job: ToyJob):
    command = launch(job, "--workers", "3", "--agents", "2")
    pids = job.wait_joined(range(3))
    mark = job.mark()
    os.kill(pids[1], signal.SIGKILL)
    pids[1] = job.wait_joined([1], mark)[1]

    mark = job.mark()
    agent_of = {rank: _parent(pid) for rank, pid in pids.items()}
    (alone,) = [rank for rank in pids if list(agent_of.values()).count(agent_of[rank]) == 1]
    kept = [rank for rank in pids if rank != alone]
    os.kill(agent_of[alone], signal.SIGKILL)
    job.wait_dead(pids[alone])
    job.wait_view(kept, pids[kept[0]], mark)
    job.finish()
    assert job.ended(command) == 0
    shown = job.output(command)
    assert "elaswave: run folder runs/" in shown
    assert "elaswave: finished; see: elaswave report runs/" in shown
    (folder,) = {event["run_folder"] for event in job.events if event["event"] == "joined"}
    assert Path(folder) == (job.folder / "runs" / "latest").resolve()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_sigint_lets_the_workers_leave(job: ToyJob):
    command = launch(job, "--workers", "2")
    pids = job.wait_joined(range(2))
    command.send_signal(signal.SIGINT)
    assert job.ended(command) == 128 + signal.SIGINT
    for pid in pids.values():
        job.wait_dead(pid)
    assert "stopping after the current step" in job.output(command)
    assert "Traceback" not in job.output(command)
    assert len([event for event in job.events if event["event"] == "departed"]) == 2


def test_workers_die_with_a_killed_launcher(job: ToyJob):
    command = launch(job, "--workers", "2")
    pids = job.wait_joined(range(2))
    command.kill()
    for pid in pids.values():
        job.wait_dead(pid)


def test_too_few_workers_wait_and_then_say_so(job: ToyJob):
    command = launch(job, "--workers", "1", settings="min_workers = 2\nwait_for_workers_s = 2.0\n")
    assert job.ended(command) == 1
    shown = job.output(command)
    assert "1 workers are fewer than elasticity.min_workers = 2" in shown
    assert "--rdzv-endpoint=127.0.0.1:" in shown
    assert "2.0 s" in shown or "2 s" in shown
