"""A bit that flips in memory is found, named and healed: in a live shard, in a copy, in the weights of a computation.

The job finishes with the bits of the run of one worker that nobody harmed, or it ends with an error that names what is
damaged; it never goes on in silence.
"""

import contextlib
from pathlib import Path

import pytest
from support.training import MiniJob, Zygote, digests, fault

from elaswave.coordination.bootstrap import EXIT_REFUSED
from elaswave.errors import BenchError
from elaswave.events import Kind, Phase, Stage
from elaswave.report.facts import History
from elaswave.telemetry.follower import Follower

STAGES = [str(stage) for stage in Stage]
GRID = ("--parallelism.stages", "2")
QUIET = ("--snapshot.scrub_steps", "0")


def run(zygote: Zygote, folder: Path, faults: str, *overrides: str, **options: object) -> History:
    with MiniJob(zygote, folder, faults=faults, overrides=overrides, **options) as job:  # type: ignore[arg-type]
        history = job.wait()
    assert len(history.faults) == faults.count("[[fault]]")
    return history


def named(folder: Path) -> set[tuple[object, ...]]:
    """What was found damaged: what, rank of the worker, shard or unit, step."""
    return {
        (event["damaged"], event["rank"], event.get("shard", event.get("unit")), event["step"])
        for event in Follower(folder).drain()
        if event["kind"] == Kind.ERROR and "damaged" in event
    }


def struck(folder: Path) -> list[dict]:
    return [event for event in Follower(folder).drain() if event["kind"] == Kind.FAULT and event["what"] == "flip"]


def causes(folder: Path) -> set[str]:
    return {event["cause"] for event in Follower(folder).drain() if event["kind"] == Kind.RECOVERY}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("grid", [(), GRID])
@pytest.mark.parametrize("mode", ["state", "gradient"])
def test_in_a_live_shard(
    zygote: Zygote, folder: Path, reference: dict[int, str], stage: str, grid: tuple[str, ...], mode: str
) -> None:
    faults = fault([2], stage, 3, "flip", seed=len(stage))
    assert digests(run(zygote, folder, faults, *grid, "--snapshot.mode", mode)) == reference
    (flip,) = struck(folder)
    assert flip["shard"] == 2
    assert ("own shard", 2, 2, flip["version"]) in named(folder)
    assert any("shards [2]" in cause for cause in causes(folder))


@pytest.mark.parametrize("stage", ["forward", "backward", "gather", "commit"])
@pytest.mark.parametrize("grid", [(), GRID])
def test_in_the_weights(
    zygote: Zygote, folder: Path, reference: dict[int, str], stage: str, grid: tuple[str, ...]
) -> None:
    history = run(zygote, folder, fault([1], stage, 3, "flip", target="weights"), *grid)
    assert digests(history) == reference
    harmless = stage == "gather"  # the step is over, its weights are of no use any more
    assert bool(named(folder)) != harmless
    for what, rank, _, step in named(folder):
        assert (what, rank, step) == ("weights", 1, struck(folder)[0]["version"])


def test_in_the_weights_and_then_a_kill(zygote: Zygote, folder: Path, reference: dict[int, str]) -> None:
    faults = fault([1], "forward", 3, "flip", target="weights") + fault([2], "reduce", 3)
    assert digests(run(zygote, folder, faults)) == reference


@pytest.mark.parametrize("grid", [(), GRID])
def test_in_a_copy_that_is_needed(
    zygote: Zygote, folder: Path, reference: dict[int, str], grid: tuple[str, ...]
) -> None:
    """The owner of what is damaged dies: another copy is taken."""
    holder = 3 if not grid else 1
    faults = fault([holder], "vote", 3, "flip", target="copy", seed=1)
    with MiniJob(zygote, folder / "look", faults=faults, overrides=[*grid, *QUIET]) as job:
        job.wait()
    (flip,) = struck(folder / "look")
    owner = flip["shard"]
    faults += fault([owner], "step", 3)
    assert digests(run(zygote, folder / "run", faults, *grid, *QUIET)) == reference
    assert named(folder / "run") == {("copy of shard", holder, owner, 2)}


def holders_of(folder: Path, zygote: Zygote, shard: int) -> list[int]:
    """Ranks that keep a copy of a shard."""
    faults = "".join(fault([rank], "vote", 3, "flip", target="copy", shard=shard) for rank in range(4))
    with MiniJob(zygote, folder, faults=faults, overrides=QUIET) as job:
        job.wait()
    return [event["rank"] for event in struck(folder)]


@pytest.mark.parametrize(("flip_at", "kill_at"), [("reduce", "vote"), ("vote", "commit")])
def test_in_all_copies_of_a_worker_that_dies(
    zygote: Zygote, folder: Path, reference: dict[int, str], flip_at: str, kill_at: str
) -> None:
    """The job goes back one step: to what owners still have before the vote, to older copies after it."""
    holders = holders_of(folder / "look", zygote, 1)
    assert len(holders) == 2
    faults = "".join(fault([rank], flip_at, 3, "flip", target="copy", shard=1) for rank in holders)
    history = run(zygote, folder / "run", faults + fault([1], kill_at, 3), *QUIET)
    assert digests(history) == reference
    assert named(folder / "run") == {("copy of shard", rank, 1, 2) for rank in holders}
    assert {one.step for one in history.recovered if one.lost} == {1}


def test_in_all_copies_and_nothing_older_is_left(zygote: Zygote, folder: Path) -> None:
    """Copies that replay steps from damaged ones are damaged too; when the owner dies, its state is gone."""
    holders = holders_of(folder / "look", zygote, 1)
    faults = "".join(fault([rank], "vote", 3, "flip", target="copy", shard=1) for rank in holders)
    faults += fault([1], "commit", 5)
    options = [*QUIET, "--snapshot.mode", "gradient"]
    with MiniJob(zygote, folder / "run", faults=faults, overrides=options, replace=False) as job:
        while job.running:
            with contextlib.suppress(BenchError):
                job.wait(timeout_s=30)
        assert sorted(job.statuses) == [-9, EXIT_REFUSED, EXIT_REFUSED, EXIT_REFUSED], job.log()
        assert "shards [1] of step 5 are gone with all their copies; and damaged: " in job.log()  # what lacks least
        for rank in holders:
            assert f"copy of shard 1 of step 4 at rank {rank}" in job.log()


@pytest.mark.parametrize("phase", [Phase.DETECT, Phase.RESTORE, Phase.MIGRATE, Phase.RESUME])
def test_in_a_live_shard_during_a_recovery(
    zygote: Zygote, folder: Path, reference: dict[int, str], phase: Phase
) -> None:
    faults = fault([1], "backward", 3) + fault([0], str(phase), 3, "flip")
    assert digests(run(zygote, folder, faults)) == reference


@pytest.mark.parametrize("mode", ["state", "gradient"])
def test_scrubbing_finds_a_damaged_copy(zygote: Zygote, folder: Path, reference: dict[int, str], mode: str) -> None:
    faults = fault([3], "vote", 4, "flip", target="copy")
    options = ("--snapshot.scrub_steps", "1", "--snapshot.mode", mode)
    assert digests(run(zygote, folder, faults, *options)) == reference
    (flip,) = struck(folder)
    assert named(folder) == {("copy of shard", 3, flip["shard"], flip["version"])}
    assert any("copies of shards of step 3" in cause for cause in causes(folder))
