"""The same process group, and DDP over it, keep working across SIGKILL of a member."""

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, which takes seconds: once here, not in every forked rank
import torch.distributed as dist
from support.ranks import Rank, start
from torch.nn.parallel import DistributedDataParallel

from elaswave.communicator.process_group import ElasticProcessGroup
from elaswave.errors import PeerLost

STEPS, LOST_AT = 12, 5


def make_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * step + rank))


def one_process(sizes: list[int]) -> torch.Tensor:
    """The same training in one process: the mean over the members of each step."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step, size in enumerate(sizes):
        optimizer.zero_grad()
        sum(model(batch(step, rank)).pow(2).mean() / size for rank in range(size)).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train_across_a_kill(me: Rank) -> dict:
    torch.set_num_threads(1)
    me.enter()
    group = ElasticProcessGroup(me.mesh, "world")
    # DDP looks names up in a default group, whatever group it is given
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = make_model()
    wrapped = DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sizes, interrupted = [], 0
    while len(sizes) < STEPS:
        step = len(sizes)
        if step == LOST_AT and me.rank == 3:
            me.tell(at=step)
            me.mesh.wait(lambda: False)
        optimizer.zero_grad()
        try:
            wrapped(batch(step, me.rank)).pow(2).mean().backward()
        except PeerLost:
            interrupted += 1
            me.enter()
            wrapped = DistributedDataParallel(model, process_group=group, init_sync=False)
            continue
        optimizer.step()
        sizes.append(group.size())
    dist.destroy_process_group()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"sizes": sizes, "interrupted": interrupted, "weights": weights.tolist()}


def test_ddp_trains_on_across_a_kill() -> None:
    with start(4, train_across_a_kill) as ranks:
        ranks.view(range(4))
        assert ranks.read(3) == {"at": LOST_AT}
        ranks.kill(3)
        ranks.view(range(3))
        results = [ranks.result(rank) for rank in range(3)]
    sizes = [4] * LOST_AT + [3] * (STEPS - LOST_AT)
    for result in results:
        assert result["sizes"] == sizes
        assert result["interrupted"] == 1
        assert result["weights"] == results[0]["weights"]
    assert torch.allclose(torch.tensor(results[0]["weights"]), one_process(sizes), rtol=1e-4, atol=1e-6)


def every_call(me: Rank) -> str:
    me.enter()
    group = ElasticProcessGroup(me.mesh, "world")
    rank, size = group.rank(), group.size()
    x = torch.full((5, 3), float(rank + 1)).t()  # not contiguous
    dist.all_reduce(x, group=group)
    assert torch.equal(x, torch.full((3, 5), 6.0))
    y = torch.full((4,), float(rank))
    dist.all_reduce(y, op=dist.ReduceOp.AVG, group=group)
    assert torch.equal(y, torch.ones(4))
    with pytest.raises(ValueError, match="SUM and AVG"):
        dist.all_reduce(y, op=dist.ReduceOp.MAX, group=group)
    parts = [torch.zeros(2) for _ in range(size)]
    group.allgather([parts], [torch.full((2,), float(rank))])
    assert torch.equal(torch.stack(parts), torch.tensor([[0.0, 0], [1, 1], [2, 2]]))
    whole = torch.zeros(size, 2)
    group._allgather_base(whole, torch.full((2,), float(rank)))
    assert torch.equal(whole, torch.stack(parts))
    own = torch.zeros(2)
    group._reduce_scatter_base(own, torch.arange(6.0))
    assert torch.equal(own, 3 * torch.arange(2 * rank, 2 * rank + 2.0))
    group.reduce_scatter([own], [[torch.full((2,), float(i)) for i in range(size)]])
    assert torch.equal(own, torch.full((2,), 3.0 * rank))
    z = torch.full((3,), float(rank))
    options = dist.BroadcastOptions()
    options.rootRank = 2
    group.broadcast([z], options).wait()
    assert torch.equal(z, torch.full((3,), 2.0))
    group.barrier().wait()
    if rank == 0:
        group.send([torch.arange(4.0)], 1, 7)
    elif rank == 1:
        got = torch.zeros(4)
        assert group.recv([got], 0, 7).get_future().wait()
        assert torch.equal(got, torch.arange(4.0))
    return group.getBackendName()


def test_every_call() -> None:
    with start(3, every_call) as ranks:
        ranks.view(range(3))
        assert [ranks.result(rank) for rank in range(3)] == ["elaswave"] * 3
