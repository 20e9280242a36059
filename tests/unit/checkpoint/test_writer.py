"""A writer may be killed at any call that touches the disk; what has the name of a checkpoint is always whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elaswave.block import Slot
from elaswave.checkpoint import folders, manifest, tensors
from elaswave.checkpoint.manifest import Manifest
from elaswave.checkpoint.writer import Part, Writer, write
from elaswave.clock import Deadline

CALLS = ("fsync", "replace", "rename", "rmdir", "mkdir", "unlink")
SPANS = [("w", 0, 60), ("b", 60, 100)]
RANGES = [[(0, 30), (60, 70)], [(30, 60), (70, 100)]]


def slot(part: int, step: int) -> Slot:
    """Values that tell their step and their place."""
    ranges = RANGES[part]
    own = Slot({"master": torch.float32}, tensors_size(ranges))
    own.tensors["master"].copy_(torch.cat([torch.arange(*span) for span in ranges]) + 1000.0 * step)
    own.version = step
    return own


def tensors_size(ranges: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def part_of(parent: Path, index: int, step: int, keep: int = 1) -> Part:
    whole = Manifest(
        step=step, digest="0", num_parts=2, scalars={}, shapes={"w": (60,)}, config={}, corpus="", versions={}
    )
    return Part(parent=parent, index=index, epoch=1, spans=SPANS, ranges=RANGES[index], manifest=whole, keep=keep)


def check_whole(parent: Path) -> list[int]:
    """Every checkpoint there can be read and is of the step that it says; returns the steps."""
    steps = []
    for folder in folders.found(parent):
        step = manifest.read(folder).step
        target = torch.zeros(100)
        tensors.read_into(folder, list(tensors.pieces(SPANS, [(0, 100)], {"master": target})))
        assert torch.equal(target, torch.arange(100) + 1000.0 * step)
        steps.append(step)
    return steps


def in_child(body: Callable[[], None], deadly_call: int) -> int:
    """Run in a process that dies in place of its n-th call to the disk; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        left = [deadly_call]

        def deadly(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                return original(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            body()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_death_at_any_call_leaves_whole_checkpoints_only(tmp_path: Path):
    deaths = 0
    for deadly_call in range(1, 100):
        parent = tmp_path / str(deadly_call)
        for index in range(2):
            write(part_of(parent, index, step=1), slot(index, step=1))
        write(part_of(parent, 0, step=2), slot(0, step=2))
        status = in_child(lambda folder=parent: write(part_of(folder, 1, step=2), slot(1, step=2)), deadly_call)
        steps = check_whole(parent)
        assert status in (0, 9)
        assert steps in ([1], [2], [1, 2])
        if status == 0:
            assert steps == [2]
            break
        deaths += 1
        for index in range(2):  # a later one clears up
            write(part_of(parent, index, step=3), slot(index, step=3))
        assert check_whole(parent) == [3]
        assert [path.name for path in parent.iterdir()] == ["step-00000003"]
    assert deaths > 5


def test_both_may_find_all_parts_at_once(tmp_path: Path):
    """Each has written its part before either looks: both finish, and one publishes."""
    aside = folders.partial(tmp_path, 1, 1)
    aside.mkdir(parents=True)
    for index in range(2):
        shard = tensors.pieces(SPANS, RANGES[index], slot(index, 1).tensors)
        tensors.write_part(aside, index, list(shard))
    assert write(part_of(tmp_path, 0, step=1), slot(0, 1)).path is not None
    assert check_whole(tmp_path) == [1]


def test_training_goes_on_when_the_disk_does_not(tmp_path: Path):
    (tmp_path / "file").touch()
    writer = Writer()
    writer.start(part_of(tmp_path / "file", 0, step=1), slot(0, 1))
    writer.wait(Deadline(30))
    outcome = writer.take_outcome()
    assert outcome is not None
    assert outcome.problem is not None
    assert "NotADirectoryError" in outcome.problem
    assert writer.take_outcome() is None


def test_what_is_written_is_what_was_there_at_the_start(tmp_path: Path):
    writer, own = Writer(), slot(0, 1)
    writer.start(part_of(tmp_path, 0, step=1), own)
    own.raw.zero_()
    writer.wait(Deadline(30))
    write(part_of(tmp_path, 1, step=1), slot(1, 1))
    assert check_whole(tmp_path) == [1]


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = Writer()
    monkeypatch.setattr(Writer, "busy", property(lambda self: True))
    with pytest.raises(ValueError, match="still being written"):
        writer.start(part_of(tmp_path, 0, step=1), slot(0, 1))
