"""A group of members in one process, driven one after the other: messages travel when somebody waits."""

from collections import deque

import torch

from elaswave.errors import DeadlineExceeded, PeerLost


class FakeHandle:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.done = tensor.view(-1).view(torch.uint8), False


Handles = FakeHandle | list[FakeHandle]


class FakeNetwork:
    """Connects fake groups.

    Attributes:
        posted: sends and receives so far.
        lost: members whose further messages stop half-way; every wait for them raises PeerLost.
        bytes: delivered so far.
    """

    def __init__(self, members: list[str]) -> None:
        self.members = tuple(members)
        self.groups = [FakeGroup(self, rank) for rank in range(len(members))]
        self.lost: set[int] = set()
        self.bytes = self.posted = 0
        self._sends: dict[tuple[int, int, int], deque[FakeHandle]] = {}
        self._receives: dict[tuple[int, int, int], deque[FakeHandle]] = {}

    def post(self, *, send: bool, key: tuple[int, int, int], tensor: torch.Tensor) -> FakeHandle:
        handle = FakeHandle(tensor)
        self.posted += 1
        (self._sends if send else self._receives).setdefault(key, deque()).append(handle)
        return handle

    def progress(self) -> None:
        """Deliver what is posted on both sides; sends are read only now, so they must not have changed."""
        for key, sends in self._sends.items():
            receives = self._receives.get(key, deque())
            while sends and receives:
                sent, received = sends.popleft(), receives.popleft()
                if len(sent.tensor) != len(received.tensor):
                    raise AssertionError(f"{len(sent.tensor)} bytes sent, {len(received.tensor)} expected")
                if key[0] in self.lost:
                    half = len(sent.tensor) // 2
                    received.tensor[:half] = sent.tensor[:half]
                    continue
                received.tensor.copy_(sent.tensor)
                self.bytes += len(sent.tensor)
                sent.done = received.done = True


class FakeGroup:
    """One member's view of the network; the part of `communicator.group.Group` that carries messages."""

    def __init__(self, network: FakeNetwork, rank: int) -> None:
        self.network, self.rank = network, rank
        self.name, self.epoch = "fake", 1
        self.members, self.size = network.members, len(network.members)

    def isend(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> FakeHandle:
        return self.network.post(send=True, key=(self.rank, dst, tag), tensor=tensor)

    def irecv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> FakeHandle:
        return self.network.post(send=False, key=(src, self.rank, tag), tensor=tensor)

    def wait(self, handles: Handles) -> None:
        self.network.progress()
        pending = [handles] if isinstance(handles, FakeHandle) else handles
        if all(handle.done for handle in pending):
            return
        if self.network.lost:
            raise PeerLost(self.epoch + 1)
        raise DeadlineExceeded("a message that nobody sends")
