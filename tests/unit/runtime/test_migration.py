"""A shard arrives behind the training: taken in when it is there, waited for when it is needed, and once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elaswave.errors import PeerLost
from elaswave.runtime.migration import Migration

VERSION = 4


class Arrival:
    """Something on its way, which somebody may be lost over."""

    def __init__(self, log: list[str], name: str, *, lost: bool = False) -> None:
        self.ready, self.bytes_received = False, 100
        self._log, self._name, self._lost = log, name, lost

    def finish(self) -> None:
        self._log.append(self._name)
        if self._lost:
            raise PeerLost(9)


class Held:
    """A layout that writes down what is done with it."""

    def __init__(self, log: list[str]) -> None:
        self.index = 3
        self.optimizer = SimpleNamespace(
            adopt=lambda version, scalars: log.append(f"adopt {version} {scalars}"), state=lambda: "state"
        )
        self.pool = SimpleNamespace(establish=lambda state: log.append(f"copy {state}"))

    def digest(self, shard: int, version: int) -> int:
        return 1000 * shard + version


def migration(log: list[str], *, shards: Any = None, sums: Any = None, extra: torch.Tensor | None = None) -> Migration:
    return Migration(Held(log), VERSION, {"step": 4.0} if shards else None, shards, sums, extra)  # type: ignore[arg-type]


def test_what_has_not_arrived_is_not_waited_for_between_operations():
    log: list[str] = []
    shards = Arrival(log, "shards")
    moving = migration(log, shards=shards)
    moving.progress()
    assert (log, moving.digest, moving.pending) == ([], 0, True)
    shards.ready = True
    moving.progress()
    assert log == ["shards", "adopt 4 {'step': 4.0}", "copy state"]
    assert moving.digest == 3004
    assert moving.pending, "only a vote proves that all shards are there"


def test_it_arrives_once():
    log: list[str] = []
    moving = migration(log, shards=Arrival(log, "shards"))
    for _ in range(2):
        moving.finish()
        moving.progress()
    assert log == ["shards", "adopt 4 {'step': 4.0}", "copy state"]


def test_a_layout_that_was_filled_at_once_is_only_copied():
    log: list[str] = []
    moving = migration(log)
    moving.progress()
    assert log == ["copy state"]
    assert moving.digest == 3004
    assert moving.bytes_received == 0


def test_after_a_loss_nothing_has_arrived():
    log: list[str] = []
    moving = migration(log, shards=Arrival(log, "shards", lost=True))
    with pytest.raises(PeerLost):
        moving.finish()
    assert log == ["shards"]
    assert (moving.digest, moving.pending) == (0, True)


def test_sums_of_others_are_added_once_and_only_when_there_are_any():
    log: list[str] = []
    moving = migration(log, sums=Arrival(log, "sums"), extra=torch.tensor([1, 2]))
    assert moving.bytes_received == 100
    reduced = torch.tensor([10, 20])
    moving.add_sums(reduced)
    moving.add_sums(reduced)
    assert reduced.tolist() == [11, 22]
    assert log == ["sums"]
    migration(log).add_sums(reduced)
    assert reduced.tolist() == [11, 22]
