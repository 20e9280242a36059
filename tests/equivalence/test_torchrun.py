"""The whole product under stock torchrun: real trainers are killed, hang, leave and come late.

Every job ends with the bits of the run of one worker that nobody harmed, survivors keep their processes, and nothing
is left over.
"""

import contextlib
import os
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.torchrun_job import ROOT, STEPS, TORCHRUN, TrainJob
from support.training import digests

pytestmark = pytest.mark.timeout(240)


def test_spares_take_the_places_of_the_killed_and_the_stopped(job: TrainJob, unharmed: dict[int, str]):
    job.torchrun(4, environment={"ELASWAVE_SPARES": "1"})
    pids = job.wait_size(4)
    since = 0
    for victim, number in ((1, signal.SIGKILL), (2, signal.SIGSTOP)):
        spare = job.wait("spare", since, what="ready")["pid"]
        since = job.poll()
        os.kill(pids[victim], number)
        job.wait_dead(pids[victim])
        pids[victim] = spare
        view = job.wait_members(list(pids.values()), since)
        assert [victim, spare] == [view["members"][victim][0], view["members"][victim][2]]
        job.wait_running(view["epoch"], 4, since)
    job.finish(unharmed, [0])


def test_agents_of_one_worker_told_by_the_environment_alone(job: TrainJob, unharmed: dict[int, str]):
    pet = {
        "PET_RDZV_BACKEND": "elaswave",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{job.port}",
        "PET_RDZV_ID": job.run_id,
        "PET_NNODES": "4:4",
        "PET_MAX_RESTARTS": "10",
        "PET_MONITOR_INTERVAL": "0.05",
    }
    for _ in range(4):
        job.start([*TORCHRUN, *job.command()], pet)
    pids = job.wait_size(4)
    job.wait_running(1, 4)
    since = job.poll()
    os.kill(pids[2], signal.SIGKILL)
    kept = [pid for rank, pid in pids.items() if rank != 2]
    job.wait_members(kept, since)
    again = job.wait_size(4, since)
    assert [again[rank] for rank in (0, 1, 3)] == kept
    job.finish(unharmed, [0] * 4)


def start_pair(job: TrainJob) -> tuple[dict[int, int], int, int]:
    """Two agents of two workers; returns rank -> pid, and which agent hosts the coordinator and which does not."""
    for _ in range(2):
        job.torchrun(2, "2:8")
    pids = job.wait_size(4)
    job.wait_running(1, 4)
    leading = job.wait("view")["pid"]
    first = [agent.pid for agent in job.agents].index(leading)
    return pids, first, 1 - first


@pytest.mark.parametrize("hosts_the_coordinator", [True, False])
def test_an_agent_is_killed(job: TrainJob, unharmed: dict[int, str], hosts_the_coordinator: bool):
    pids, leader, other = start_pair(job)
    victim, spared = (leader, other) if hosts_the_coordinator else (other, leader)
    kept, lost = job.workers_of(pids, spared), job.workers_of(pids, victim)
    assert len(kept) == len(lost) == 2
    since = job.poll()
    job.agents[victim].kill()
    for pid in lost:
        job.wait_dead(pid)
    view = job.wait_members(kept, since)
    job.wait_running(view["epoch"], 2, since)
    statuses: list[int | None] = [0, 0]
    statuses[victim] = -signal.SIGKILL
    job.finish(unharmed, statuses)


def test_a_hung_coordinator_comes_back_as_a_node_and_the_other_agent_is_killed(job: TrainJob, unharmed: dict[int, str]):
    pids, leader, other = start_pair(job)
    kept, hung = job.workers_of(pids, other), job.workers_of(pids, leader)
    since = job.poll()
    job.agents[leader].send_signal(signal.SIGSTOP)
    view = job.wait_members(kept, since)
    job.wait_running(view["epoch"], 2, since)
    since = job.poll()
    job.agents[leader].send_signal(signal.SIGCONT)
    for pid in hung:
        job.wait_dead(pid)
    again = job.wait_size(4, since)
    assert set(kept) < set(again.values())
    view = job.wait_members(list(again.values()), since)
    job.wait_running(view["epoch"], 4, since)  # newcomers hold state once they have committed a step

    kept = job.workers_of(again, leader)
    since = job.poll()
    job.agents[other].kill()
    view = job.wait_members(kept, since)
    job.wait_running(view["epoch"], 2, since)
    statuses: list[int | None] = [0, 0]
    statuses[other] = -signal.SIGKILL
    job.finish(unharmed, statuses)


def test_a_frozen_host_is_fenced_when_it_wakes(job: TrainJob, unharmed: dict[int, str]):
    """Its workers wake first, with nobody to tell them: none of their steps may count."""
    pids, leader, other = start_pair(job)
    kept, frozen = job.workers_of(pids, leader), job.workers_of(pids, other)
    since = job.poll()
    for pid in (job.agents[other].pid, *frozen):
        os.kill(pid, signal.SIGSTOP)
    view = job.wait_members(kept, since)
    reached = job.wait_running(view["epoch"], 2, since)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    job.wait_running(view["epoch"], 2, job.poll())
    job.agents[other].send_signal(signal.SIGCONT)
    for pid in frozen:
        job.wait_dead(pid)
    again = job.wait_size(4, since)
    assert set(kept) < set(again.values())
    job.finish(unharmed, [0, 0])
    late = [e for e in job.events if e["kind"] == "step_committed" and e["pid"] in frozen and e["step"] > reached]
    assert not late


def test_a_late_agent_adds_ranks_and_leaves_without_a_lost_step(job: TrainJob, unharmed: dict[int, str]):
    job.torchrun(2, "1:8")
    first = job.wait_size(2)
    job.wait_running(1, 2)
    since = job.poll()
    late = job.torchrun(2, "1:8")
    pids = job.wait_size(4, since)
    assert sorted(pids) == [0, 1, 2, 3]
    assert {rank: pids[rank] for rank in first} == first
    view = job.wait_members(list(pids.values()), since)
    job.wait_running(view["epoch"], 4, since)

    since = job.poll()
    late.send_signal(signal.SIGTERM)
    assert job.ended(late) == 0
    job.wait_members(list(first.values()), since)
    job.finish(unharmed, [0, 0])
    recoveries = [event for event in job.events if event["kind"] == "recovery"]
    assert recoveries
    assert not [event for event in recoveries if event["lost"] or event["recomputed"]]
    assert not [event for event in job.events if event["kind"] == "death"]


OWN = [
    f"--training.steps={STEPS}",
    "--training.train_batch_size=32",
    "--training.micro_batch_size=4",
    "--elasticity.suspicion_s=1",
]


def test_a_script_of_ones_own_survives_a_kill(job: TrainJob, tmp_path: Path):
    alone = TrainJob(tmp_path / "alone")
    try:
        job.torchrun(2, command=[str(ROOT / "tests/support/own_script.py"), *OWN])
        alone.hurry()
        alone.torchrun(1, command=[str(ROOT / "tests/support/own_script.py"), *OWN])
        pids = job.wait_size(2)
        job.wait_running(1, 2)
        since = job.poll()
        os.kill(pids[1], signal.SIGKILL)
        job.wait_members([pids[0]], since)
        assert job.wait_size(2, since)[0] == pids[0]
        job.wait_running(3, 2, since)
        assert alone.ended(alone.agents[0]) == 0
        job.finish(digests(alone.history()), [0])
    finally:
        alone.close()


@pytest.mark.slow
def test_a_job_that_is_short_of_workers_says_so_and_goes_on_with_more(job: TrainJob, unharmed: dict[int, str]):
    command = job.command("--elasticity.min_workers=2")
    first = job.torchrun(1, "1:8", command=command)
    job.wait_output(first, "1 are here, elasticity.min_workers = 2; start another torchrun")
    job.torchrun(1, "1:8", command=command)
    job.wait_output(first, "the job goes on with 2 workers")
    job.finish(unharmed, [0, 0])
    assert {len(mine) for mine in job.micro_batches()} == {4}, "no step was done by one alone"


def test_workers_that_do_not_fit_are_told_why_and_the_others_go_on(job: TrainJob, unharmed: dict[int, str]):
    good = job.torchrun(1, "1:8")
    other_torch = [str(ROOT / "tests/support/other_torch.py"), "--config", str(job.config)]
    job.wait_running(1, 1)
    told = {
        job.torchrun(1, "1:8", command=job.command("--training.seed=8")): "was started with training.seed = 8, the job",
        job.torchrun(1, "1:8", command=other_torch): "runs torch 2.0.0, the job runs torch 2.",
        job.torchrun(1, "1:8", environment={"ELASWAVE_SECRET": "0" * 32}): "does not know this job's secret",
    }
    for agent, complaint in told.items():
        assert job.ended(agent) == 1
        assert f"{complaint}" in job.output(agent)
    assert good.poll() is None
    job.finish(unharmed, [0, 1, 1, 1])


def test_what_cannot_work_ends_with_a_reason(tmp_path: Path):
    small = tmp_path / "small.txt"
    small.write_text("x" * 50)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as stranger, contextlib.ExitStack() as stack:

        def start(
            name: str, *overrides: str, port: int | None = None, environment: Mapping[str, str] | None = None
        ) -> TrainJob:
            job = TrainJob(tmp_path / name, environment)
            stack.callback(job.close)
            job.port = job.port if port is None else port
            job.torchrun(1, command=job.command(*overrides))
            return job

        wrong = {
            "training.stepz = '8': unknown key; known here: activation_checkpointing": start(
                "key", "--training.stepz=8"
            ),
            "has 50 tokens, that is 6 samples of 8; one step needs training.train_batch_size = 8": start(
                "corpus", "--data.source=text", f"--data.path={small}"
            ),
            "cannot make the run folder /proc/nowhere/": start(
                "folder", environment={"ELASWAVE_RUNS": "/proc/nowhere"}
            ),
            f"{stranger.getsockname()[1]}: it accepts connections but does not answer": start(
                "port", "--elasticity.wait_for_workers_s=3", port=stranger.getsockname()[1]
            ),
            "waited 0.5 s for workers: 0 of 1 workers are here": start("wait", "--elasticity.wait_for_workers_s=0.5"),
        }
        for complaint, job in wrong.items():
            assert job.ended(job.agents[0]) == 1
            shown = job.output(job.agents[0])
            assert re.search(rf"elaswave: error: .*{re.escape(complaint)}", shown), shown
            assert "Traceback" not in shown
            assert not job.left_over()


@pytest.mark.slow
def test_state_that_is_gone_ends_the_job(job: TrainJob):
    agent = job.torchrun(4, command=job.command("--snapshot.copies=1"), environment={"ELASWAVE_SPARES": "1"})
    pids = job.wait_size(4)
    job.wait_running(1, 4)
    for rank in (1, 2):
        os.kill(pids[rank], signal.SIGKILL)
    assert job.ended(agent) == 1
    shown = job.output(agent)
    assert "are gone with all their copies" in shown
    assert "Traceback" not in shown
    assert not job.left_over()
