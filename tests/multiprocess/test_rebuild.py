"""What is measured against the edit works: rebuilds among survivors give right sums, ranks end with the bench."""

import os
import select
import signal
import socket

import pytest
import torch
import torch.distributed as dist

from elaswave.bench import freed, recovery_time
from elaswave.bench.forked import Lines, Rank, fork, kill, run_ranks, store_server
from elaswave.communicator import rebuild
from elaswave.errors import BenchError

GROUPS = {"data 0": [0, 2], "data 1": [1, 3], "pipeline 0": [0, 1], "pipeline 1": [2, 3]}


def rebuild_after_losing_rank_3(me: Rank, port: int) -> list[float]:
    store = dist.TCPStore("127.0.0.1", port, None, False)
    x = {}

    def use(groups: dict[str, dist.ProcessGroup], note: str) -> None:
        for name in sorted(groups):
            x[f"{note} {name}"] = tensor = torch.ones(4) * (me.rank + 1)
            dist.all_reduce(tensor, group=groups[name])

    use(rebuild.build(store, "first", me.rank, [0, 1, 2, 3], GROUPS, 20.0), "healthy")
    me.meet()
    if me.rank == 3:
        me.meet()
        return []
    survivors = {name: [member for member in members if member != 3] for name, members in GROUPS.items()}
    repaired = {name: survivors[name] for name in ("data 1", "pipeline 1")}
    assert rebuild.partial(me.rank, repaired) == {}  # a group of one needs no communication
    assert rebuild.partial_bare(store, "bare", me.rank, repaired, 20.0) == {}
    world = {"all": [0, 1, 2]}
    use(rebuild.partial(me.rank, world), "partial")
    bare = rebuild.partial_bare(store, "bare", me.rank, world, 20.0)["all"]
    x["bare all"] = tensor = torch.ones(4) * (me.rank + 1)
    bare.allreduce([tensor]).wait()
    del bare
    use(rebuild.full(store, "second", me.rank, [0, 1, 2], {**survivors, **world}, 20.0), "full")
    dist.destroy_process_group()
    me.meet()
    return {name: float(tensor[0]) for name, tensor in x.items()}


def test_rebuilt_groups_of_survivors_add_up() -> None:
    with store_server(60) as port:
        *survivors, _ = run_ranks(4, lambda me: rebuild_after_losing_rank_3(me, port), 60)
    for rank, sums in enumerate(survivors):
        assert sums["partial all"] == sums["bare all"] == sums["full all"] == 6.0
        if rank in (0, 2):
            assert sums["healthy data 0"] == sums["full data 0"] == 4.0
        if rank in (0, 1):
            assert sums["healthy pipeline 0"] == sums["full pipeline 0"] == 3.0


def test_every_way_to_repair_is_measured() -> None:
    measured = recovery_time.measure(4, 1, 100)
    assert set(measured) == set(recovery_time.CONTENDERS)
    assert all(values[0] > 0 for metrics in measured.values() for values in metrics.values())
    ratios = recovery_time.ratios_of(measured, 4)
    assert f"{recovery_time.FULL} / {recovery_time.EDIT}, 4 ranks" in ratios


def test_a_survivor_is_freed_by_the_real_control_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed, "VICTIM_BYTES", 1 << 20)
    measured = freed.measure(1)
    assert measured[freed.MUTEX]["freed_ms"][0] > 0
    assert set(measured) == {freed.MUTEX, freed.EOF, freed.PIDFD}


def test_a_failing_rank_ends_all_with_its_traceback() -> None:
    def body(me: Rank) -> None:
        if me.rank == 1:
            raise RuntimeError("this one fails")
        me.meet()

    with pytest.raises(BenchError, match="this one fails"):
        run_ranks(3, body, 20)


def test_a_dead_rank_ends_all() -> None:
    def body(me: Rank) -> None:
        if me.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        me.meet()

    with pytest.raises(BenchError, match="rank 2 died"):
        run_ranks(3, body, 20)


def test_values_are_exchanged_in_order_of_rank() -> None:
    assert run_ranks(3, lambda me: me.exchange(me.rank * 10), 20) == [[0, 10, 20]] * 3


def test_ranks_die_with_the_process_that_forked_them() -> None:
    near, far = socket.socketpair()
    near.settimeout(20)

    def parent() -> None:
        def body(me: Rank) -> None:
            pids = me.exchange(os.getpid())
            if me.rank == 0:
                Lines(far).send(pids)
            signal.pause()

        run_ranks(2, body, 60)

    pid = fork(parent)
    pids = Lines(near).receive()
    pidfds = [os.pidfd_open(one) for one in pids]
    kill(pid)
    try:
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 20)[0]
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
        near.close()
        far.close()
