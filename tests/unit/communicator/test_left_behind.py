"""A member that others have left behind in an epoch gives up on it, but not before it has read what they sent."""

from collections.abc import Callable, Iterator

import pytest

from elaswave.communicator import mesh as module
from elaswave.communicator.mesh import LEFT_BEHIND_S, Mesh
from elaswave.errors import PeerLost


class Clock:
    """Stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class World:
    """A mesh in which something happens at given times of a wait instead of on its links."""

    def __init__(self, mesh: Mesh, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mesh, self._clock = mesh, clock
        self._events: list[tuple[float, Callable[[], None]]] = []
        monkeypatch.setattr(mesh, "_progress", self._progress)

    def _progress(self, timeout_s: float) -> None:
        until_s = self._clock.now_s + timeout_s
        if self._events and self._events[0][0] <= until_s:
            until_s, event = self._events.pop(0)
            event()
        self._clock.now_s = until_s

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        self._events.append((self._clock.now_s + delay_s, event))

    def leave_behind(self) -> None:
        self.mesh.inbox.ahead = self.mesh.epoch + 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    clock = Clock()
    monkeypatch.setattr(module, "SYSTEM", clock)
    mesh = Mesh(worker_id="a", host_id="here", secret=b"s" * 32)
    yield World(mesh, clock, monkeypatch)
    mesh.close()


def test_what_was_sent_before_others_went_on_still_counts_after_a_long_wait(world: World):
    arrived = list[int]()
    world.after(7 * LEFT_BEHIND_S, world.leave_behind)
    world.after(7.5 * LEFT_BEHIND_S, lambda: arrived.append(1))
    world.mesh.wait(lambda: bool(arrived))
    assert arrived


def test_who_stays_behind_for_long_gives_up(world: World):
    world.after(7 * LEFT_BEHIND_S, world.leave_behind)
    with pytest.raises(PeerLost):
        world.mesh.wait(lambda: False)


def test_every_epoch_begins_with_patience(world: World):
    world.leave_behind()
    with pytest.raises(PeerLost):
        world.mesh.wait(lambda: False)
    world.mesh.edit(1, {}, {})
    world.leave_behind()
    arrived = list[int]()
    world.after(LEFT_BEHIND_S / 2, lambda: arrived.append(1))
    world.mesh.wait(lambda: bool(arrived))
    assert arrived
