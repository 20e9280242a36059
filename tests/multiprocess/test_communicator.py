"""Real processes: every operation, dtype and transport; blocked operations are freed, and redone to the same bits."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.ranks import Rank, start

from elaswave.communicator.group import Group, GroupSpec
from elaswave.errors import PeerLost

DTYPES = (torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.uint8)
SIZES = (0, 1, 100, 70_001, 3_000_000)


def pattern(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Values whose sum over a few ranks is exact in every dtype."""
    return ((torch.arange(size) * (rank + 3)) % 17).to(dtype)


def spans_of(size: int, members: int) -> list[tuple[tuple[int, int], ...]]:
    """Three layers, each cut among the members: what interleaved shards look like."""
    layers = [0, size // 5, size // 2, size]
    spans: list[list[tuple[int, int]]] = [[] for _ in range(members)]
    for low, high in pairwise(layers):
        for i in range(members):
            spans[i].append((low + (high - low) * i // members, low + (high - low) * (i + 1) // members))
    return [tuple(own) for own in spans]


def check_collectives(group: Group, size: int, dtype: torch.dtype) -> None:
    members, rank = group.size, group.rank
    inputs = [pattern(i, size, dtype) for i in range(members)]
    total = torch.stack(inputs).to(torch.float64).sum(0).to(dtype)
    out = torch.zeros(size, dtype=dtype)
    group.all_reduce(inputs[rank], out)
    assert torch.equal(out, total)
    for spans in (None, spans_of(size, members)):
        cuts = spans or [((size * i // members, size * (i + 1) // members),) for i in range(members)]
        own = torch.cat([total[a:b] for a, b in cuts[rank]])
        mine = torch.zeros_like(own)
        group.reduce_scatter(inputs[rank], mine, spans)
        assert torch.equal(mine, own)
        whole = torch.zeros(size, dtype=dtype)
        group.all_gather(mine, whole, spans)
        assert torch.equal(whole, total)
    copy = inputs[rank].clone()
    group.broadcast(copy, members - 1)
    assert torch.equal(copy, inputs[-1])


def every_operation(me: Rank) -> str:
    group = me.enter()
    for dtype in DTYPES:
        for size in SIZES[:4]:
            check_collectives(group, size, dtype)
    check_collectives(group, SIZES[-1], torch.int64)
    check_collectives(group, SIZES[-1], torch.bfloat16)
    group.barrier()
    right, left = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    for size in SIZES if group.size > 1 else ():
        got = torch.zeros(size)
        handles = [group.irecv(got, left, tag=size), group.isend(pattern(group.rank, size, got.dtype), right, tag=size)]
        group.wait(handles)
        assert torch.equal(got, pattern(left, size, got.dtype))
    return "ok"


@pytest.mark.parametrize(
    ("members", "transport"), [(1, "shm"), (2, "shm"), (4, "shm"), (2, "tcp"), (3, "tcp"), (5, "mixed")]
)
def test_every_operation(members: int, transport: str) -> None:
    with start(members, every_operation, transport=transport) as ranks:
        ranks.view(range(members))
        assert [ranks.result(rank) for rank in range(members)] == ["ok"] * members


def slots_body(me: Rank) -> list[str]:
    """Sums of floats over twelve slots, carried by all four members and then by three."""
    hashes = []
    for owners in ([i % 4 for i in range(12)], [i % 3 for i in range(12)]):
        group = me.enter()
        if me.rank not in owners:
            return hashes
        for size in (50, 30_000):
            parts = []
            for slot, owner in enumerate(owners):
                if owner == me.rank:
                    parts.append(torch.randn(size, generator=torch.Generator().manual_seed(slot)))
            out = torch.empty(size)
            group.all_reduce(parts, out)
            hashes.append(str(out.double().sum().item()) + str(out.view(torch.int32).sum().item()))
        me.tell(step=len(hashes))
    return hashes


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_bits_do_not_depend_on_the_number_of_ranks(transport: str) -> None:
    with start(4, slots_body, transport=transport) as ranks:
        ranks.view(range(4), slots=[i % 4 for i in range(12)])
        for rank in range(4):
            assert ranks.read(rank) == {"step": 2}
        ranks.kill(3)
        ranks.view(range(3), slots=[i % 3 for i in range(12)])
        for rank in range(3):
            assert ranks.read(rank) == {"step": 4}
            hashes = ranks.result(rank)
            assert hashes[:2] == hashes[2:]


OPERATIONS: dict[str, Callable[[Group, torch.Tensor, torch.Tensor], object]] = {
    "all_reduce": lambda group, x, out: group.all_reduce(x, out),
    "small all_reduce": lambda group, x, out: group.all_reduce(x[:100], out[:100]),
    "reduce_scatter": lambda group, x, out: group.reduce_scatter(x, out[: _own(group, x)]),
    "all_gather": lambda group, x, out: group.all_gather(x[: _own(group, x)].contiguous(), out),
    "barrier": lambda group, x, out: group.barrier(),
    "broadcast": lambda group, x, out: group.broadcast(out, 3),
    "recv": lambda group, x, out: group.recv(out, (group.rank + 1) % 3),
}


def _own(group: Group, x: torch.Tensor) -> int:
    n, r, s = x.numel(), group.rank, group.size
    return n * (r + 1) // s - n * r // s


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_blocked_operation_is_freed_and_redone(operation: str, transport: str) -> None:
    """Rank 3 never takes part; in `recv` everyone even waits for a live, silent peer. Then rank 3 is killed."""

    def body(me: Rank) -> str:
        group = me.enter()
        x, out = pattern(me.rank, 500_000, torch.int64), torch.zeros(500_000, dtype=torch.int64)
        me.tell(ready=True)
        if me.rank == 3:
            me.mesh.wait(lambda: False)
        with pytest.raises(PeerLost):
            OPERATIONS[operation](group, x, out)
        group = me.enter()
        for size in (10, 40_000, 500_000):
            check_collectives(group, size, torch.int64)
        return "ok"

    with start(4, body, transport=transport) as ranks:
        ranks.view(range(4))
        for rank in range(4):
            assert ranks.read(rank) == {"ready": True}
        ranks.kill(3)
        ranks.view(range(3))
        assert [ranks.result(rank) for rank in range(3)] == ["ok"] * 3


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_hundred_edits_leave_nothing_behind() -> None:
    """Rank 2 is dropped and taken back in every round: links come and go, descriptors and maps stay few."""

    def body(me: Rank) -> list[int]:
        counts = []
        out = torch.zeros(20_000, dtype=torch.int64)
        for turn in range(200):
            if turn % 2 and me.rank == 2:
                for peer in list(me.mesh.links):
                    me.mesh._drop(me.mesh.links[peer])
                me.mesh.poll()
                me.tell(at=turn)
                continue
            group = me.enter()
            group.all_reduce(torch.full((20_000,), me.rank + 1), out)
            assert int(out[0]) == sum(r + 1 for r in ((0, 1) if turn % 2 else (0, 1, 2)))
            if turn in (20, 21, 198, 199):
                me.mesh.poll()
                counts.append(_open_fds() + Path("/proc/self/maps").read_text().count("memfd"))
            me.tell(at=turn)
        return counts

    with start(3, body) as ranks:
        for turn in range(200):
            ranks.view((0, 1) if turn % 2 else (0, 1, 2))
            for rank in range(3):
                assert ranks.read(rank) == {"at": turn}
        for rank in range(2):
            counts = ranks.result(rank)
            assert max(counts[2:]) <= max(counts[:2])


def other_groups(me: Rank) -> list[float]:
    """Pairs that are shared out anew between two collectives of all, while the group of all goes on."""
    world, found = me.enter(), []
    for pairs in ([(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]):
        mine = next(pair for pair in pairs if me.rank in pair)
        pair = GroupSpec(tuple(world.members[rank] for rank in mine))
        me.mesh.regroup({"world": world.spec, "pair": pair})
        assert me.mesh.group("world") is world
        for _ in range(3):
            world.all_reduce(torch.ones(70_001))
            total = torch.full((70_001,), float(10**me.rank))
            me.mesh.group("pair").all_reduce(total)
        world.barrier()
        found.append(float(total[-1]))
    return found


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_groups_change_within_an_epoch(transport):
    with start(4, other_groups, transport=transport) as ranks:
        ranks.view(range(4))
        assert [ranks.result(rank) for rank in range(4)] == [
            [11.0, 101.0, 101.0, 1001.0],
            [11.0, 1010.0, 1010.0, 110.0],
            [1100.0, 101.0, 101.0, 110.0],
            [1100.0, 1010.0, 1010.0, 1001.0],
        ]
