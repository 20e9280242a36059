"""Every mode of the trainer runs under torchrun through a kill, on a torch with and without what we build on."""

import os
import signal
import sys

import pytest
from support.torchrun_job import ROOT, STEPS, TrainJob, check_samples
from support.training import digests

pytestmark = pytest.mark.timeout(240)


def kill_one(job: TrainJob) -> None:
    """Kill rank 1 of the job's three workers, and see it replaced while the others keep their processes."""
    pids = job.wait_size(3)
    job.wait_running(1, 3)
    since = job.poll()
    os.kill(pids[1], signal.SIGKILL)
    job.wait_members([pids[0], pids[2]], since)
    again = job.wait_size(3, since)
    assert [again[0], again[2]] == [pids[0], pids[2]]
    view = job.wait_members(list(again.values()), since)
    job.wait_running(view["epoch"], 3, since)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--snapshot.mode=gradient"],
        ["--parallelism.zero_layout=contiguous"],
        ["--elasticity.transport=tcp"],
    ],
    ids=lambda words: words[0].partition(".")[2],
)
def test_no_mode_changes_a_bit(job: TrainJob, unharmed: dict[int, str], overrides: list[str]):
    job.torchrun(3, command=job.command(*overrides))
    kill_one(job)
    job.finish(unharmed, [0])


def test_fast_sums_go_on_through_a_kill(job: TrainJob):
    agent = job.torchrun(3, command=job.command("--training.numerics=fast"))
    kill_one(job)
    job.hurry()
    assert job.ended(agent) == 0
    history = job.history()
    assert sorted(digests(history)) == list(range(1, STEPS + 1))
    check_samples(history, STEPS)
    job.check_clean()


def test_another_torch_gets_supervisors_and_is_told_what_it_lacks(job: TrainJob, unharmed: dict[int, str]):
    agent = job.start(
        [
            *(sys.executable, str(ROOT / "tests/support/torchrun_without.py")),
            *("--rdzv-backend=elaswave", f"--rdzv-endpoint=127.0.0.1:{job.port}", f"--rdzv-id={job.run_id}"),
            *("--nnodes=1", "--nproc-per-node=3", "--max-restarts=100"),
            *job.command(),
        ]
    )
    kill_one(job)
    assert "tail_log.TailLog is gone" in job.output(agent)
    assert "each worker gets a supervisor instead" in job.output(agent)
    job.finish(unharmed, [0])
