"""Stock torchrun with our rendezvous: one node and several, replaced workers, lost agents, latecomers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launch_job import TORCHRUN, Event, ToyJob

FAST = ("--rdzv-conf=suspicion_s=1.0,heartbeat_s=0.1,leave_timeout_s=10",)
LATE = "1:8"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[ToyJob]:
    toy = ToyJob(tmp_path, {"ELASWAVE_SPARE_DELAY_S": "0.2"})
    yield toy
    toy.close()


def is_spare(event: Event) -> bool:
    return event["event"] == "started" and event["spare"]


def test_one_node_replaces_only_the_dead_worker(job: ToyJob, tmp_path: Path):
    agent = job.torchrun(4, options=[*FAST, "--tee=3"])
    first = job.wait_joined(range(4))

    mark = job.mark()
    os.kill(first[1], signal.SIGKILL)
    job.wait_view([0, 2, 3], first[0], mark)
    replaced = job.wait_joined([1], mark)
    job.wait_view(range(4), first[0], mark)
    assert replaced[1] != first[1]

    mark = job.mark()
    os.kill(first[2], signal.SIGSTOP)
    job.wait_dead(first[2])
    replaced |= job.wait_joined([2], mark)
    job.wait_view(range(4), first[0], mark)

    assert sorted(job.alive()) == sorted([first[0], first[3], *replaced.values()])
    job.finish()
    assert job.ended(agent) == 0
    shown = job.output(agent)
    for pid in (*first.values(), *replaced.values()):
        assert f"with pid {pid} is in" in shown
    logs = "".join(path.read_text() for path in tmp_path.glob("logs/**/stdout*.log"))
    assert f"with pid {first[1]} is in" in logs, "the log of the dead worker was truncated"


def test_a_spare_takes_over_and_another_is_made(job: ToyJob):
    agent = job.torchrun(2, options=[*FAST, "--redirects=3", "--tee=1"], environment={"ELASWAVE_SPARES": "1"})
    first = job.wait_joined(range(2))
    spare = job.wait(is_spare)["pid"]
    job.wait(lambda event: event["event"] == "ready" and event["pid"] == spare)

    mark = job.mark()
    os.kill(first[1], signal.SIGKILL)
    assert job.wait_joined([1], mark)[1] == spare
    job.wait_view([0, 1], first[0], mark)
    successor = job.wait(job.after(mark, is_spare))["pid"]
    assert sorted(job.alive()) == sorted([first[0], spare, successor])

    job.finish()
    assert job.ended(agent) == 0
    job.wait_dead(successor)
    assert f"toy of rank 1 with pid {spare} is in" in job.output(agent)


def test_nodes_are_lost_leave_and_come_late(job: ToyJob):
    primary = job.torchrun(2, "2:8", options=FAST)
    job.wait(lambda event: event["event"] == "started")
    other = job.torchrun(2, "2:8", options=FAST)
    pids = job.wait_joined(range(4))
    owner = {event["rank"]: event["agent"] for event in job.events if event["event"] == "joined"}
    lost = [rank for rank in pids if owner[rank] == "0"]
    kept = [rank for rank in pids if owner[rank] == "1"]
    assert len(lost) == len(kept) == 2

    primary.kill()
    for rank in lost:
        job.wait_dead(pids[rank])
    witness = pids[kept[0]]
    job.wait_view(kept, witness)

    mark = job.mark()
    late = job.torchrun(2, LATE, options=FAST)
    job.wait_view(range(4), witness, mark)
    newcomers = job.wait_joined(lost, mark)

    mark = job.mark()
    late.send_signal(signal.SIGTERM)
    assert job.ended(late) == 0
    assert len([e for e in job.events if e["event"] == "departed" and e["pid"] in newcomers.values()]) == 2
    job.wait_view(kept, witness, mark)

    assert sorted(job.alive()) == sorted(pids[rank] for rank in kept)
    job.finish()
    assert job.ended(other) == 0


def test_agents_of_one_worker_configured_by_environment_alone(job: ToyJob):
    pet = {
        "PET_RDZV_BACKEND": "elaswave",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{job.port}",
        "PET_RDZV_ID": job.run_id,
        "PET_NNODES": "3:3",
        "PET_MAX_RESTARTS": "10",
        "PET_MONITOR_INTERVAL": "0.05",
        "PET_RDZV_CONF": "suspicion_s=1.0,heartbeat_s=0.1",
    }
    agents = [job.start([*TORCHRUN, "-m", "support.toy_worker"], pet) for _ in range(3)]
    pids = job.wait_joined(range(3))
    folders = {event["run_folder"] for event in job.events if event["event"] == "joined"}
    assert len(folders) == 1

    mark = job.mark()
    os.kill(pids[2], signal.SIGKILL)
    job.wait_joined([2], mark)
    job.wait_view(range(3), pids[0], mark)
    job.finish()
    assert [job.ended(agent) for agent in agents] == [0, 0, 0]


def test_a_node_that_hung_comes_back_as_a_new_one(job: ToyJob):
    agents = []
    for count in range(3):
        agents.append(job.torchrun(1, "3:8", options=FAST))
        job.wait(lambda event, n=count: event["event"] == "started" and event["agent"] == str(n))
    pids = job.wait_joined(range(3))
    rank_of = {int(event["agent"]): event["rank"] for event in job.events if event["event"] == "joined"}
    hung, witness = rank_of[2], pids[rank_of[0]]

    agents[2].send_signal(signal.SIGSTOP)
    job.wait_view([rank_of[0], rank_of[1]], witness)
    mark = job.mark()
    agents[2].send_signal(signal.SIGCONT)
    job.wait_dead(pids[hung])
    again = job.wait_joined([hung], mark)
    job.wait_view(range(3), witness, mark)
    assert sorted(job.alive()) == sorted([pids[rank_of[0]], pids[rank_of[1]], again[hung]])
    job.finish()
    assert [job.ended(agent) for agent in agents] == [0, 0, 0]
