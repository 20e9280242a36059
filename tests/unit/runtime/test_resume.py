"""What a worker keeps of an interrupted step when the job goes on from an older one than its own."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from elaswave.config import from_mapping
from elaswave.planner.scheduler import make_plan
from elaswave.runtime.job import Job
from elaswave.topology import Member, View


class Trainee:
    """A sum of gradients that only remembers what was added to it."""

    def __init__(self, computed: Sequence[int]) -> None:
        self.losses = dict.fromkeys(computed, 1.0)
        self.summed = list(computed)

    def begin(self) -> None:
        self.losses, self.summed = {}, []

    def select(self, version: int) -> None:
        """All versions are here."""


def resumed(step: int, done: Sequence[Sequence[int]], trainee: Trainee) -> Any:
    """A job of two members that goes on after step 2, seen from the first."""
    config = from_mapping({"training": {"train_batch_size": 4, "micro_batch_size": 1}})
    members = [Member(rank=i, worker_id=name, node_id=name, host_id="", pid=1) for i, name in enumerate("ab")]
    job: Any = SimpleNamespace(
        plan=make_plan(config, None, View(epoch=2, members=tuple(members), reason="")),
        agent=SimpleNamespace(worker_id="a"),
        config=config,
        trainee=trainee,
        step=step,
        seen=[],
        entered_epoch=2,
        _held=object(),
    )
    restored = SimpleNamespace(version=2, held=object(), done=tuple(tuple(ids) for ids in done))
    job.recomputed = Job.resume(job, restored)  # type: ignore[arg-type]
    return job


@pytest.mark.parametrize(("step", "losses"), [(3, []), (3, [1]), (2, [])])
def test_a_sum_of_another_step_is_forgotten_when_only_others_keep_theirs(step: int, losses: list[int]):
    trainee = Trainee([0, 1])
    trainee.losses = dict.fromkeys(losses, 1.0)  # none after a commit, those of the step after it, none before any
    job = resumed(step, [(), (2, 3)], trainee)
    assert trainee.summed == []
    assert trainee.losses == {}
    assert job._open == (0, 1)


def test_what_still_counts_is_kept():
    trainee = Trainee([0, 1])
    job = resumed(2, [(0, 1), (2,)], trainee)
    assert trainee.summed == [0, 1]
    assert job._open == ()
    job = resumed(2, [(0,), (2,)], Trainee([0]))
    assert sorted(job.trainee.summed) == [0]
    assert job._open in ((1,), (3,))


def test_when_nobody_keeps_anything_the_step_begins_anew():
    trainee = Trainee([])
    job = resumed(2, [(), ()], trainee)
    assert job._open is None
