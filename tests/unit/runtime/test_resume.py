"""How a worker goes on after a recovery: with which sums, from which layout, and what it has still to tell."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from elaswave.config import Snapshot
from elaswave.runtime.job import Job
from elaswave.runtime.sharded_state import ShardedState


class Sums:
    """Counts how often everything was forgotten."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1


def state_of(held: Any, before: Any) -> ShardedState:
    state = ShardedState(Snapshot())
    state._held, state._before = held, before
    return state


def job_of(step: int, held: Any = None, before: Any = None, seen: Sequence[int] = ()) -> Any:
    """The part of a job that goes on; writes down what it announces, selects and takes up."""
    sums = Sums()
    job: Any = SimpleNamespace(
        step=step,
        seen=[SimpleNamespace(epoch=epoch) for epoch in seen],
        entered_epoch=2,
        settled=False,
        sums=sums,
        announced=[],
        selected=[],
        taken_up=[],
        recorder=SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: 0.0)),
        state=state_of(held, before),
        _keeps_sums=None,
        _computing=True,
    )
    job.trainee = SimpleNamespace(stage=SimpleNamespace(gradients=sums, select=job.selected.append))
    job._announce = lambda version, digest: job.announced.append((version, digest))
    job._take_up = job.taken_up.append
    return job


def resume(job: Any, version: int, *, forget: bool = False) -> Any:
    restored: Any = SimpleNamespace(
        version=version,
        held=object(),
        digest=77,
        truth=(),
        migration=object(),
        salvage=SimpleNamespace(forget=forget, tasks=("some",), spent="all"),
    )
    Job.resume(job, restored)
    return restored


def layout(*, whole: bool) -> Any:
    return SimpleNamespace(whole=whole)


def test_everybody_goes_on_from_what_was_restored():
    job = job_of(3, layout(whole=True), seen=[1, 2, 3])
    restored = resume(job, 2)
    assert (job.step, job.selected, job.settled) == (2, [2], True)
    assert (job.state.holding, job.state.migration) == (restored.held, restored.migration)
    assert job.taken_up == [("some",)]
    assert [view.epoch for view in job.seen] == [3]
    assert not job._computing


def test_a_step_that_others_have_committed_is_announced_here_too():
    job = job_of(2, layout(whole=True))
    resume(job, 3)
    assert job.announced == [(3, 77)]


@pytest.mark.parametrize(("step", "version", "held"), [(3, 3, True), (3, 2, True), (0, 1, False)])
def test_nothing_is_announced_twice_or_by_one_that_has_just_come(step: int, version: int, held: bool):
    job = job_of(step, layout(whole=True) if held else None)
    resume(job, version)
    assert job.announced == []


def test_the_last_layout_that_was_whole_is_kept_until_the_new_one_is():
    whole, partial = layout(whole=True), layout(whole=False)
    job = job_of(2, whole)
    restored = resume(job, 2)
    assert job.state.holdings() == [restored.held, whole]
    job = job_of(2, partial, whole)
    restored = resume(job, 2)
    assert job.state.holdings() == [restored.held, whole]


@pytest.mark.parametrize("forget", [False, True])
def test_sums_are_kept_into_the_next_attempt_unless_they_do_not_count(forget: bool):
    job = job_of(2, layout(whole=True))
    resume(job, 2, forget=forget)
    Job.begin_attempt(job)
    assert job.sums.begun == forget
    assert job._computing
