"""Every way of summing, cutting, copying and sending gives the bits it promises, through a loss; and what cannot be
survived ends the job with one clear error."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest
from support.torchrun_job import check_samples
from support.training import MiniJob, Zygote, digests, fault

from elaswave.clock import Deadline
from elaswave.coordination.bootstrap import EXIT_REFUSED
from elaswave.errors import BenchError
from elaswave.telemetry.follower import Follower

KILLS = fault([1], "backward", 3) + fault([2], "commit", 5)


@pytest.mark.parametrize(
    "override",
    [
        "--snapshot.mode=gradient",
        "--parallelism.zero_layout=contiguous",
        "--elasticity.transport=tcp",
        "--snapshot.copies=1",
        "--snapshot.verify=false",
    ],
)
def test_no_setting_changes_a_bit(zygote: Zygote, folder: Path, reference: dict[int, str], override: str):
    with MiniJob(zygote, folder, faults=KILLS, overrides=[override]) as job:
        history = job.wait()
    assert len(history.faults) == 2
    assert digests(history) == reference


def test_fast_sums_recover_too(zygote: Zygote, folder: Path):
    with MiniJob(zygote, folder, faults=KILLS, overrides=["--training.numerics=fast"]) as job:
        history = job.wait()
    assert len(history.faults) == 2
    digests(history)
    check_samples(history, 6)


def test_state_that_is_gone_ends_the_job_with_one_error(zygote: Zygote, folder: Path):
    """Two neighbours die at once, and there was one copy of each shard."""
    with MiniJob(zygote, folder, steps=1000, overrides=["--snapshot.copies=1"], replace=False) as job:
        deadline, follower = Deadline(30), Follower(folder)
        while not any(event["kind"] == "step_committed" and event["step"] == 3 for event in follower.poll()):
            assert not deadline.passed(), job.log()
        for pid, local_rank in job.running.items():
            if local_rank in (1, 2):
                os.kill(pid, signal.SIGKILL)
        while job.running:
            with contextlib.suppress(BenchError):  # one per worker that fails
                job.wait(timeout_s=30)
        assert sorted(job.statuses) == [-9, -9, EXIT_REFUSED, EXIT_REFUSED], job.log()
        told = set(re.findall(r"elaswave: error: (.*)", job.log()))
    assert len(told) == 1
    assert re.search(r"shards \[\d\] of step \d+ are gone with all their copies; .*snapshot.copies = 1", told.pop())
