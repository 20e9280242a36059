"""Putting weight gradients off changes no bit of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from elaswave.pipeline.split import Deferred, backward, split_linears
from tests.support.gradients import Found


class Net(nn.Module):
    """Uses one layer three times, one weight also by hand, and has one that is frozen and one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(12, 16), nn.Linear(16, 16, bias=False)
        self.norm, self.last, self.frozen = nn.LayerNorm(16), nn.Linear(16, 5), nn.Linear(5, 5)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.tanh(self.first(x)))
        for _ in range(3):
            x = torch.tanh(self.again(x)) + x
        return self.frozen(self.last(x + functional.linear(x, self.again.weight)))


def gradients(model: nn.Module, *, put_off: bool, autocast: bool) -> dict[str, torch.Tensor]:
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().sum()
    wanted = [x, *parameters.values()]
    if not put_off:
        first, *rest = torch.autograd.grad(loss, wanted)
        return {"input": first} | dict(zip(parameters, rest, strict=True))
    deferred = Deferred()
    first, *found = backward(loss, None, wanted, deferred)
    assert len(deferred) == 5
    later = Found()
    deferred.compute(later)
    assert len(deferred) == 0
    assert first is not None
    halves = {"input": first}
    for (name, parameter), half in zip(parameters.items(), found, strict=True):
        other = later.get(parameter)
        assert half is not None or other is not None
        halves[name] = sum(part for part in (half, other) if part is not None)  # type: ignore[assignment]
    assert found[0] is None, "the first layer's weight has to wait"
    return halves


@pytest.fixture
def model() -> Net:
    torch.manual_seed(1)
    return Net()


@pytest.mark.parametrize("autocast", [False, True])
def test_later_is_the_same_as_at_once(model: Net, autocast: bool):
    split_linears(model)
    at_once = gradients(model, put_off=False, autocast=autocast)
    later = gradients(model, put_off=True, autocast=autocast)
    assert at_once.keys() == later.keys()
    for name in at_once.keys() - {"again.weight"}:  # its four parts add up in another order
        assert torch.equal(at_once[name], later[name]), name
        assert at_once[name].dtype == later[name].dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_not_put_off_is_the_same(model: Net, autocast: bool):
    split_linears(model)
    later = gradients(model, put_off=True, autocast=autocast)
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    wanted, found = [p for p in model.parameters() if p.requires_grad], Found()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().sum()
    deferred = Deferred(found)
    for parameter, gradient in zip(wanted, backward(loss, None, wanted, deferred), strict=True):
        if gradient is not None:
            found[parameter] = gradient + found[parameter] if parameter in found else gradient
    assert not len(deferred)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(found[parameter], later[name]), name


@pytest.mark.parametrize("autocast", [False, True])
def test_split_layers_compute_what_torch_computes(model: Net, autocast: bool):
    plain = gradients(model, put_off=False, autocast=autocast)
    assert split_linears(model) == 4
    split = gradients(model, put_off=False, autocast=autocast)
    for name, value in plain.items():
        torch.testing.assert_close(split[name], value, rtol=2e-2, atol=0.5 if autocast else 1e-4)


def test_a_layer_of_a_kind_of_its_own_is_left_alone():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(3, 3), nn.Linear(3, 3))
    assert split_linears(model) == 1


class Recomputed(nn.Module):
    """Its activations are computed again for the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_change_nothing(model: Net, autocast: bool):
    split_linears(model)
    plain = gradients(model, put_off=True, autocast=autocast)
    recomputed = gradients(Recomputed(model), put_off=True, autocast=autocast)
    assert recomputed.keys() == {name if name == "input" else f"inner.{name}" for name in plain}
    for name, value in plain.items():
        assert torch.equal(recomputed[name if name == "input" else f"inner.{name}"], value), name


class Shared(nn.Module):
    """A linear whose weight is also the table of an embedding, as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.logits = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.logits.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits(torch.tanh(self.table(tokens)))


def test_a_weight_that_is_also_used_otherwise_has_both_parts():
    torch.manual_seed(3)
    model, tokens = Shared(), torch.arange(9).view(3, 3)
    loss = model(tokens).square().sum()
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    split_linears(model)
    deferred = Deferred()
    weight, bias = backward(model(tokens).square().sum(), None, list(model.parameters()), deferred)
    later = Found()
    deferred.compute(later)
    assert weight is not None, "as a table at once"
    assert bias is None
    torch.testing.assert_close(weight + later[model.table.weight], wanted[0])
    torch.testing.assert_close(later[model.logits.bias], wanted[1])


def test_parameters_that_move_between_buffers_keep_their_gradients_apart(model: Net):
    """What is put off reads the inputs that were, and is found under the parameter that is."""
    split_linears(model)
    before = gradients(model, put_off=True, autocast=False)
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(2)).requires_grad_()
    deferred = Deferred()
    backward(model(x).square().sum(), None, [p for p in model.parameters() if p.requires_grad], deferred)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)
    later = Found()
    deferred.compute(later)
    assert torch.equal(later[model.first.weight], before["first.weight"])
