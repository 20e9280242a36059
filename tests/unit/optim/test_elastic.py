"""Springs that the optimizer moors itself are those of EWC, and are cut and moved like any state of an optimizer."""

import functools

import pytest
import torch
from torch import nn

from elaswave.continual.ewc import EWC
from elaswave.optim.elastic import ElasticSGD, estimated_steps
from elaswave.zero.optimizer import ShardedOptimizer
from elaswave.zero.schema import MASTER, discover

ENDS = (4, 9)
OPTIONS = {"lr": 0.1, "strength": 2.0, "task_ends": ENDS, "fisher_steps": 3}


def gradients(size: int, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for _ in range(steps)]


def fresh(size: int = 12) -> nn.Parameter:
    return nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(9)))


def train(parameter, steps, optimizer) -> None:
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("online", [False, True])
def test_its_springs_are_those_of_elastic_weight_consolidation(online):
    ours, theirs, steps = fresh(), fresh(), gradients(12, 14)
    train(ours, steps, ElasticSGD([ours], online=online, **OPTIONS))
    ewc, plain = EWC(2.0, online=online), torch.optim.SGD([theirs], lr=0.1)
    for number, gradient in enumerate(steps, start=1):
        theirs.grad = gradient.clone()
        ewc.pull({"w": theirs})
        plain.step()
        if number in ENDS:
            last = torch.stack(steps[number - 3 : number])
            ewc.consolidate({"w": last.square().mean(0)}, {"w": theirs})
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_before_the_first_end_it_is_plain_descent():
    ours, theirs = fresh(), fresh()
    train(ours, gradients(12, 4), ElasticSGD([ours], weight_decay=0.1, **OPTIONS))
    train(theirs, gradients(12, 4), torch.optim.SGD([theirs], lr=0.1, weight_decay=0.1))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("fisher_steps", "expected"), [(3, [0, 1, 2, 3, 0, 0, 1, 2, 3, 0]), (100, [1, 2, 3, 4, 1, 2, 3, 4, 5, 0])]
)
def test_importance_is_summed_over_the_last_steps_of_a_task(fisher_steps, expected):
    assert [estimated_steps(step, ENDS, fisher_steps) for step in range(1, 11)] == expected


@pytest.mark.parametrize("moment", [2, 4, 6, 10])
def test_a_shard_goes_on_with_the_bits_of_the_whole(moment):
    make = functools.partial(ElasticSGD, **OPTIONS)
    schema = discover(make)
    assert set(schema.kinds) == {MASTER, "squares", "importance", "anchor"}
    whole, steps = fresh(200), gradients(200, 14)
    train(whole, steps, make([whole]))
    before = ShardedOptimizer(make, ((0, 200),), ((0, 200),), schema)
    before.initialise(fresh(200).detach())
    for gradient in steps[:moment]:
        before.step(gradient, 0.1)
        before.commit()
    after = ShardedOptimizer(make, ((30, 90), (121, 150)), ((0, 200),), schema)
    for kind, tensor in after.staging().tensors.items():
        tensor.copy_(torch.cat([before.state().tensors[kind][a:b] for a, b in after.ranges]))
    after.adopt(moment, before.state().scalars)
    for gradient in steps[moment:]:
        after.step(torch.cat([gradient[a:b] for a, b in after.ranges]), 0.1)
        after.commit()
    found = after.state().tensors
    assert torch.equal(found[MASTER], torch.cat([whole.detach()[a:b] for a, b in after.ranges]))
    assert (found["importance"] > 0).all()


def test_state_survives_saving():
    ours, steps = fresh(), gradients(12, 14)
    optimizer = ElasticSGD([ours], **OPTIONS)
    train(ours, steps[:6], optimizer)
    copy = nn.Parameter(ours.detach().clone())
    resumed = ElasticSGD([copy])
    resumed.load_state_dict({**optimizer.state_dict()})
    copies = {name: value.clone() for name, value in optimizer.state[ours].items()}
    resumed.state[copy].update(copies)
    train(ours, steps[6:], optimizer)
    train(copy, steps[6:], resumed)
    assert torch.equal(ours, copy)


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"strength": -1}, {"fisher_steps": 0}, {"task_ends": (3, 2)}, {"task_ends": (0,)}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ElasticSGD([fresh()], **options)
