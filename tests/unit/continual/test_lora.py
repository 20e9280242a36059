"""Adapters begin as nothing, merge into plain layers, and are held back by what the weights mean."""

import copy

import pytest
import torch
from torch import nn

from elaswave.continual.ewc import EWC
from elaswave.continual.lora import LowRank, adapt, merge, penalty


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("first", nn.Linear(6, 8))
    net.add_module("between", nn.Tanh())
    net.add_module("second", nn.Linear(8, 5))
    return net.double()


def trained(net, adapters) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator))


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained():
    net, x = model(), torch.randn(3, 6, dtype=torch.float64)
    before = net(x)
    adapters = adapt(net, {"first", "second"}, rank=2, alpha=8)
    assert torch.equal(net(x), before)
    assert set(adapters) == {"first", "second"}
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    assert names == ["first.down", "first.up", "second.down", "second.up"]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 2 * (6 + 8 + 8 + 5)


def test_merged_layers_compute_what_adapters_did():
    net, x = model(), torch.randn(3, 6, dtype=torch.float64)
    adapters = adapt(net, {"first"}, rank=3, alpha=6)
    trained(net, adapters)
    adapted = net(x)
    before = adapters["first"].base.weight.clone()
    merge(net, adapters)
    assert type(net.first) is nn.Linear
    torch.testing.assert_close(net(x), adapted)
    torch.testing.assert_close(net.first.weight - before, 2 * adapters["first"].up @ adapters["first"].down)


def test_the_penalty_is_that_of_elastic_weights_on_merged_ones():
    net = model()
    anchors = {name: p.detach().clone() for name, p in net.named_parameters()}
    fisher = {name: torch.rand(p.shape, dtype=torch.float64) for name, p in anchors.items()}
    ewc = EWC(2 * 5.0)
    ewc.consolidate(fisher, anchors)
    adapters = adapt(net, {"first", "second"}, rank=2, alpha=3)
    trained(net, adapters)
    ours = penalty(adapters, fisher, 5.0)
    slopes = torch.autograd.grad(ours, [adapters["first"].down, adapters["first"].up])
    assert all(slope.norm() > 0 for slope in slopes)
    merged = copy.deepcopy(net)
    merge(merged, {name: merged.get_submodule(name) for name in adapters})
    torch.testing.assert_close(ours, ewc.penalty(dict(merged.named_parameters())), rtol=1e-6, atol=0)


def test_adapters_are_drawn_from_the_generator_given():
    drawn = [adapt(model(), {"first"}, 2, 4, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(drawn[0]["first"].down, drawn[1]["first"].down)


def test_dropout_is_for_training_alone():
    layer = LowRank(nn.Linear(6, 6), 2, 4, dropout=0.5)
    with torch.no_grad():
        layer.up.fill_(1.0)
    x = torch.ones(1, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ValueError, match="third"):
        adapt(model(), {"first", "third"}, 2, 4)
    with pytest.raises(ValueError, match="rank = 7: use 1 to 6"):
        LowRank(nn.Linear(6, 8), 7, 4)
    with pytest.raises(ValueError, match="dropout"):
        LowRank(nn.Linear(6, 8), 2, 4, dropout=1.0)
