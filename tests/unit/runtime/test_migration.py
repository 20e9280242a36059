"""A shard arrives behind the training: taken in when it is there, waited for when it is needed, and once."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elaswave.clock import Deadline
from elaswave.errors import PeerLost
from elaswave.runtime.migration import Migration

VERSION = 4


class Arrival:
    """Something on its way, which somebody may be lost over."""

    def __init__(self, log: list[str], name: str, *, lost: bool = False) -> None:
        self.ready, self.bytes_received = False, 100
        self._log, self._name, self._lost = log, name, lost

    def ask(self) -> None:
        self._log.append(f"ask for {self._name}")

    def pack(self) -> None:
        self._log.append(f"pack {self._name}")

    def keep(self) -> None:
        self._log.append(f"keep {self._name}")

    def send(self) -> None:
        self._log.append(f"send {self._name}")

    def wait(self) -> None:
        if self._lost:
            raise PeerLost(9)

    def take(self) -> None:
        self._log.append(f"take {self._name}")

    def finish(self) -> None:
        self.wait()
        self._log.append(f"take {self._name}")


class Held:
    """A layout that writes down what is done with it."""

    def __init__(self, log: list[str]) -> None:
        self.index = 3
        self.memory = torch.ones(4)
        self.optimizer = SimpleNamespace(
            adopt=lambda version, scalars: log.append(f"adopt {version} {scalars}"), state=lambda: "state"
        )
        self.pool = SimpleNamespace(establish=lambda state: log.append(f"copy {state}"))

    def rooms(self) -> list[Callable[[], object]]:
        return [self.memory.zero_]

    def digest(self, shard: int, version: int) -> int:
        return 1000 * shard + version


def migration(log: list[str], *, shards: Any = None, sums: Any = None, extra: torch.Tensor | None = None) -> Migration:
    return Migration(Held(log), VERSION, {"step": 4.0} if shards else None, shards, sums, extra)  # type: ignore[arg-type]


BEGUN = ["ask for shards", "pack shards", "keep shards", "send shards"]
TAKEN = ["take shards", "adopt 4 {'step': 4.0}", "copy state"]


def go_on_until(moving: Migration, log: list[str], last: str) -> None:
    deadline = Deadline(20.0)
    while last not in log:
        assert not deadline.passed()
        moving.progress()


def test_what_has_not_arrived_is_not_waited_for_between_operations():
    log: list[str] = []
    shards = Arrival(log, "shards")
    moving = migration(log, shards=shards)
    moving.progress()
    for last in ("send shards", "keep shards"):
        go_on_until(moving, log, last)
    assert sorted(log) == sorted(BEGUN)
    assert (moving.digest, moving.pending) == (0, True)
    shards.ready = True
    go_on_until(moving, log, "copy state")
    assert log[-3:] == TAKEN
    assert moving.digest == 3004
    assert moving.pending, "only a vote proves that all shards are there"


def test_it_arrives_once():
    log: list[str] = []
    moving = migration(log, shards=Arrival(log, "shards"))
    moving.progress()
    for _ in range(2):
        moving.finish()
        moving.progress()
    assert sorted(log) == sorted([*BEGUN, *TAKEN])
    assert log[-3:] == TAKEN


def test_memory_of_the_next_step_has_been_used_when_it_is_needed():
    log: list[str] = []
    moving = migration(log)
    moving.arrive()
    moving.finish()
    assert moving._held.memory.tolist() == [0.0] * 4
    assert moving.waited_s > 0


def test_a_layout_that_was_filled_at_once_is_only_copied():
    log: list[str] = []
    moving = migration(log)
    moving.progress()
    moving.progress()
    assert log == ["copy state"]
    assert moving.digest == 3004
    assert moving.bytes_received == 0


def test_after_a_loss_nothing_has_arrived():
    log: list[str] = []
    moving = migration(log, shards=Arrival(log, "shards", lost=True))
    moving.progress()
    with pytest.raises(PeerLost):
        moving.finish()
    moving.abandon()
    assert not set(log) & set(TAKEN)
    assert (moving.digest, moving.pending) == (0, True)


def test_sums_of_others_are_added_once_and_only_when_there_are_any():
    log: list[str] = []
    moving = migration(log, sums=Arrival(log, "sums"), extra=torch.tensor([1, 2]))
    assert moving.bytes_received == 100
    reduced = torch.tensor([10, 20])
    moving.add_sums(reduced)
    moving.add_sums(reduced)
    assert reduced.tolist() == [11, 22]
    assert log == ["take sums"]
    migration(log).add_sums(reduced)
    assert reduced.tolist() == [11, 22]
