"""A peer that closes its mesh: what it had sent is still read, and nobody waits long for what it had not."""

import os
import signal
from collections.abc import Callable

import pytest
import torch
from support.ranks import Rank, Ranks, start, worker_id

from elaswave.clock import SYSTEM
from elaswave.communicator.group import Group
from elaswave.errors import PeerLost

TIMEOUT_S = 60.0
"""Of an operation; whoever sits it out is not freed, and the parent gives up before."""
ELEMENTS = 400_000


def leave(me: Rank) -> None:
    """Close everything while the process lives on."""
    me.mesh.detach()
    me.mesh.close()
    me.tell(closed=True)
    signal.pause()


def await_closed(ranks: Ranks, rank: int) -> None:
    assert ranks.read(rank) == {"closed": True}


OPERATIONS: dict[str, Callable[[Group, torch.Tensor], object]] = {
    "all_reduce": lambda group, x: group.all_reduce(x),
    "small all_reduce": lambda group, x: group.all_reduce(x[:100]),
    "barrier": lambda group, x: group.barrier(),
    "broadcast": lambda group, x: group.broadcast(x, 0),
    "recv": lambda group, x: group.recv(x, 0),
    "send": lambda group, x: [group.send(x, 0) for _ in range(100)],
}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wait_for_a_member_that_has_closed_ends(operation: str, transport: str) -> None:
    """The link's end is reported, and the wait is over long before its timeout although no view has come."""

    def body(me: Rank) -> str:
        reported: list[str] = []
        me.mesh._on_broken = lambda peer, why: reported.append(peer)
        group = me.enter()
        x = torch.ones(ELEMENTS)
        group.all_reduce(x)
        me.tell(ready=True)
        if me.rank == 0:
            leave(me)
        with pytest.raises(PeerLost) as lost:
            OPERATIONS[operation](group, x)
        assert lost.value.epoch == group.epoch + 1
        me.tell(freed=reported)
        group = me.enter()
        x = torch.ones(ELEMENTS)
        group.all_reduce(x)
        assert float(x.sum()) == 2 * ELEMENTS
        return "ok"

    with start(3, body, transport=transport, timeout_s=TIMEOUT_S) as ranks:
        ranks.view(range(3))
        for rank in range(3):
            assert ranks.read(rank) == {"ready": True}
        await_closed(ranks, 0)
        for rank in (1, 2):
            assert ranks.read(rank) == {"freed": [worker_id(0)]}
        ranks.view((1, 2))
        assert [ranks.result(rank) for rank in (1, 2)] == ["ok", "ok"]


@pytest.mark.parametrize("elements", [10, 5_000, 100_000, 500_000])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_what_was_sent_before_closing_is_read(transport: str, elements: int) -> None:
    """The reader begins only when the sender is gone, and owes it credits for every slot it empties."""

    reader, writer = os.pipe()

    def body(me: Rank) -> float:
        group = me.enter()
        group.barrier()
        x = torch.full((elements,), float(me.rank + 1))
        if me.rank == 1:
            group.send(x, 0)
            leave(me)
        me.tell(ready=True)
        os.read(reader, 1)
        group.recv(x, 1)
        return float(x.sum())

    with start(2, body, transport=transport, timeout_s=TIMEOUT_S) as ranks:
        ranks.view(range(2))
        assert ranks.read(0) == {"ready": True}
        await_closed(ranks, 1)
        os.write(writer, b"1")
        assert ranks.result(0) == 2.0 * elements
    os.close(reader)
    os.close(writer)


def test_waits_that_do_not_need_the_closed_one_go_on() -> None:
    """Two members talk on beyond the time after which a wait for the third would end."""

    def body(me: Rank) -> float:
        group = me.enter()
        group.barrier()
        if me.rank == 2:
            leave(me)
        x = torch.full((10,), float(me.rank))
        if me.rank == 1:
            me.mesh.wait(lambda: bool(me.mesh._broken))
            since_s = SYSTEM.monotonic()
            me.mesh.wait(lambda: SYSTEM.monotonic() - since_s > 2.0)
            group.send(x, 0)
        else:
            group.recv(x, 1)
        return float(x[0])

    with start(3, body, timeout_s=TIMEOUT_S) as ranks:
        ranks.view(range(3))
        await_closed(ranks, 2)
        assert [ranks.result(rank) for rank in range(2)] == [1.0, 1.0]
