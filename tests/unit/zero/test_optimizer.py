"""A sharded optimizer computes the bits of the plain one, and every step can be taken back."""

import functools
import itertools
import json

import pytest
import torch
from torch import nn

from elaswave.errors import ConfigError
from elaswave.zero.layout import cut, intersect
from elaswave.zero.optimizer import FRESH, ShardedOptimizer, runs
from elaswave.zero.schema import MASTER, discover

LAYERS = (700, 515)
SIZE = sum(LAYERS)
DECAYED = ((0, 300), (301, 650), (700, 1100))
STEPS = 10


class Counting(torch.optim.SGD):
    """Keeps a count in its parameter groups, as schedule-free optimizers do, and state in new tensors."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                state["mean"] = (state.get("mean", torch.zeros_like(p)) * (group["k"] - 1) + p.detach()) / group["k"]


def counting(groups):
    return Counting([{**group, "k": 0} for group in groups], lr=1e-2)


def of(cls, **options):
    return functools.partial(cls, **options)


OPTIMIZERS = {
    "adamw": of(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1),
    "adamw-foreach": of(torch.optim.AdamW, foreach=True),
    "adamw-amsgrad": of(torch.optim.AdamW, amsgrad=True),
    "sgd": of(torch.optim.SGD, lr=1e-2),
    "momentum": of(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1, dampening=0.1),
    "nesterov": of(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": of(torch.optim.Adagrad, initial_accumulator_value=0.1, weight_decay=0.01),
    "rmsprop": of(torch.optim.RMSprop, centered=True, momentum=0.5),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "adamax": torch.optim.Adamax,
    "counting": counting,
}


def initial() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


def gradient(step: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(100 + step)) * (torch.arange(SIZE) % 5 != 0)


def rate(step: int) -> float:
    return 1e-2 / step


@functools.cache
def plain(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weights and state after ten steps of the optimizer on whole, separate parameters."""
    bounds = sorted({0, *(b for span in DECAYED for b in span), SIZE})
    spans = list(itertools.pairwise(bounds))
    weights = initial()
    parameters = [nn.Parameter(weights[a:b].clone()) for a, b in spans]
    decayed = [p for p, span in zip(parameters, spans, strict=True) if span in DECAYED]
    others = [p for p, span in zip(parameters, spans, strict=True) if span not in DECAYED]
    optimizer = OPTIMIZERS[name]([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for p, (a, b) in zip(parameters, spans, strict=True):
            p.grad = gradient(step)[a:b] * 0.7
        optimizer.step()
    kinds = {k for k, v in optimizer.state[parameters[0]].items() if isinstance(v, torch.Tensor) and v.dim()}
    return torch.cat([p.detach() for p in parameters]), {
        kind: torch.cat([optimizer.state[p][kind] for p in parameters]) for kind in kinds
    }


def pick(flat: torch.Tensor, ranges) -> torch.Tensor:
    return torch.cat([flat[a:b] for a, b in ranges] or [flat[:0]])


def sharded(name: str, ranges) -> ShardedOptimizer:
    optimizer = ShardedOptimizer(OPTIMIZERS[name], ranges, DECAYED)
    optimizer.initialise(pick(initial(), ranges))
    return optimizer


def advance(optimizer: ShardedOptimizer, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.step(pick(gradient(step), optimizer.ranges), rate(step), 0.7)
        optimizer.commit()


def check_equal(name: str, optimizer: ShardedOptimizer) -> None:
    weights, state = plain(name)
    expected = {MASTER: weights, **state}
    found = optimizer.state(STEPS).tensors
    assert set(found) == set(expected)
    for kind, tensor in found.items():
        assert torch.equal(tensor.view(torch.int32), pick(expected[kind], optimizer.ranges).view(torch.int32)), kind


SHARDS = {
    "whole": ((0, SIZE),),
    "odd": ((3, 310), (640, 701), (1099, 1214)),
    "plain only": ((650, 693),),
    "decayed only": ((5, 6), (400, 417)),
    "empty": (),
}


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_have_the_bits_of_the_plain_optimizer(name, shard):
    optimizer = sharded(name, SHARDS[shard])
    advance(optimizer, 1, STEPS)
    check_equal(name, optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_can_be_taken_back_and_repeated(name):
    optimizer = sharded(name, SHARDS["odd"])
    for step in range(1, STEPS + 1):
        part = pick(gradient(step), optimizer.ranges)
        before = optimizer.state().raw.clone(), dict(optimizer.state().scalars)
        optimizer.step(part * 3, rate(step))  # never committed
        assert optimizer.committed == step - 1
        assert torch.equal(optimizer.state().raw, before[0])
        assert optimizer.state().scalars == before[1]
        optimizer.step(part, rate(step), 0.7)
        optimizer.commit()
        assert optimizer.versions == (step, step - 1)
        optimizer.select(step - 1)
        assert optimizer.committed == step - 1
        assert torch.equal(optimizer.state().raw, before[0])
        optimizer.step(part, rate(step), 0.7)
        optimizer.commit()
    check_equal(name, optimizer)


@pytest.mark.parametrize("moment", [0, 1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_cut_continues_from_tensors_and_scalars(name, moment):
    whole = sharded(name, ((0, SIZE),))
    advance(whole, 1, moment)
    old = whole.state()
    scalars = json.loads(json.dumps(dict(old.scalars)))
    for ranges in cut(LAYERS, 3, "interleaved", 64).shards:
        optimizer = ShardedOptimizer(OPTIMIZERS[name], ranges, DECAYED, whole.schema)
        slot = optimizer.staging()
        for kind, tensor in slot.tensors.items():
            tensor.copy_(pick(old.tensors[kind], ranges))
        assert optimizer.committed is None
        optimizer.adopt(moment, scalars)
        advance(optimizer, moment + 1, STEPS)
        check_equal(name, optimizer)


def test_the_gradient_is_kept_and_left_as_it_was():
    optimizer = sharded("adamw", ((10, 20),))
    part = torch.ones(10)
    optimizer.step(part, 0.1, 0.5)
    assert torch.equal(part, torch.ones(10))
    assert torch.equal(optimizer.gradient, torch.full((10,), 0.5))


def test_scalars_are_the_same_on_every_shard():
    optimizers = [sharded("nadam", ranges) for ranges in SHARDS.values()]
    for optimizer in optimizers:
        assert optimizer.state().scalars == {FRESH: True}
        advance(optimizer, 1, 3)
    assert len({json.dumps(dict(optimizer.state().scalars)) for optimizer in optimizers}) == 1


def test_unknown_versions_are_errors():
    optimizer = ShardedOptimizer(OPTIMIZERS["sgd"], ((0, 4),), DECAYED)
    with pytest.raises(KeyError):
        optimizer.state()
    with pytest.raises(ValueError, match="no committed version"):
        optimizer.step(torch.zeros(4), 0.1)
    optimizer.initialise(torch.zeros(4))
    with pytest.raises(KeyError, match="version 1 is not here"):
        optimizer.commit()


class Normalised(torch.optim.Optimizer):
    """Scales every update by the norm of the whole parameter."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad / p.grad.norm()


@pytest.mark.parametrize(
    "make", [Normalised, torch.optim.Adafactor, torch.optim.LBFGS, of(torch.optim.AdamW, fused=True)]
)
def test_optimizers_that_are_not_elementwise_are_refused(make):
    with pytest.raises(ConfigError, match=r"optimizer\.name"):
        discover(make)


@pytest.mark.parametrize("shard", SHARDS)
def test_runs_split_a_shard_by_decay(shard):
    ranges = SHARDS[shard]
    decayed, others = runs(ranges, DECAYED)
    flags = pick(torch.zeros(SIZE).index_fill_(0, torch.cat([torch.arange(a, b) for a, b in DECAYED]), 1), ranges)
    for stretches, value in ((decayed, 1.0), (others, 0.0)):
        assert all((flags[a:b] == value).all() and a < b for a, b in stretches)
    assert sum(b - a for a, b in (*decayed, *others)) == len(flags)
    assert sum(b - a for a, b in decayed) == sum(b - a for a, b in intersect(ranges, DECAYED))
