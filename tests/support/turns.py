"""Members of a group as threads of which only one runs at a time: they take turns whenever one has to wait."""

import threading
from collections.abc import Callable, Sequence

from support.fake_group import FakeGroup, FakeHandle, FakeNetwork, Handles

from elaswave.errors import DeadlineExceeded, PeerLost


class Turns:
    """Runs one body per member, the same way every time.

    Attributes:
        network: between them.
        groups: one member's side each.
    """

    def __init__(self, size: int) -> None:
        self.network = FakeNetwork([f"w{member}" for member in range(size)])
        self.groups = [TurnGroup(self, member) for member in range(size)]
        self._changed, self._turn = threading.Condition(), -1
        self._live = list(range(size))
        self._errors: list[BaseException] = []

    def run(self, bodies: Sequence[Callable[[FakeGroup], None]]) -> None:
        """Run all bodies to their ends; raises what the first of them raised.

        Raises:
            DeadlineExceeded: all that are left wait for one another.
        """
        pairs = enumerate(zip(bodies, self.groups, strict=True))
        threads = [threading.Thread(target=self._run, args=(member, *pair), daemon=True) for member, pair in pairs]
        for thread in threads:
            thread.start()
        self._pass_to(0)
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self, member: int, body: Callable[[FakeGroup], None], group: FakeGroup) -> None:
        self._await(member)
        try:
            body(group)
        except BaseException as error:
            self._errors.append(error)
        after = self._after(member)
        self._live.remove(member)
        if self._live:
            self._pass_to(after)

    def give_way(self, member: int) -> None:
        """Let every other member run until it has to wait."""
        self._pass_to(self._after(member))
        self._await(member)

    def _after(self, member: int) -> int:
        return self._live[(self._live.index(member) + 1) % len(self._live)]

    def _pass_to(self, member: int) -> None:
        with self._changed:
            self._turn = member
            self._changed.notify_all()

    def _await(self, member: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == member)


class TurnGroup(FakeGroup):
    """A fake group whose waits let the others run."""

    def __init__(self, turns: Turns, rank: int) -> None:
        super().__init__(turns.network, rank)
        self._turns = turns

    def wait(self, handles: Handles) -> None:
        pending = [handles] if isinstance(handles, FakeHandle) else list(handles)
        while True:
            self.network.progress()
            if all(handle.done for handle in pending):
                return
            if self.network.lost:
                raise PeerLost(self.epoch + 1)
            before = self.network.posted
            self._turns.give_way(self.rank)
            if self.network.posted == before:
                self.network.progress()
                if not all(handle.done for handle in pending):
                    raise DeadlineExceeded("all members wait for one another")
