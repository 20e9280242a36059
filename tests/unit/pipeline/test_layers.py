"""Any worker builds any layers of a model with the same bits, and knows the shapes of the others without them."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from elaswave import LayerSpec
from elaswave.errors import ConfigError
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole


def loss_sum(output, targets):
    return functional.cross_entropy(output.flatten(0, 1), targets.flatten(), reduction="sum")


class Cut(nn.Module):
    """Hidden state and the tokens it came from, as float and int64."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(11, 6)

    def forward(self, tokens):
        return self.token(tokens), tokens


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, parts):
        hidden, tokens = parts
        return hidden + torch.tanh(self.mix(hidden)), tokens


class Out(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(6), nn.Linear(6, 11, bias=False)

    def forward(self, parts):
        hidden, tokens = parts
        return self.logits(self.norm(hidden)) - functional.one_hot(tokens, 11)


class Tied:
    """A tuple goes from layer to layer, and the first and the last share a matrix."""

    def layers(self):
        return [
            LayerSpec(Cut, ties={"token.weight": "token"}, name="embedding"),
            LayerSpec(Middle, name="blocks.0"),
            LayerSpec(Middle, name="blocks.1"),
            LayerSpec(Out, ties={"logits.weight": "token"}, name="head"),
        ]

    def loss_sum(self, output, targets):
        return loss_sum(output, targets)


def bits(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


REFERENCE = {number: bits(Layers(Tied(), seed=3).build(number)) for number in range(4)}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_any_layers_in_any_order_have_the_same_bits(order, noise):
    torch.manual_seed(noise)
    state = torch.get_rng_state()
    layers = Layers(Tied(), seed=3)
    for number in order:
        assert same(bits(layers.build(number)), REFERENCE[number])
    assert torch.equal(torch.get_rng_state(), state), "the caller's draws are not disturbed"


@pytest.mark.parametrize("seed", [0, -1, 4, 3 + 2**32, 2**70])
def test_every_seed_and_layer_draws_apart(seed):
    layers = Layers(Tied(), seed=seed)
    assert not same(bits(layers.build(1)), REFERENCE[1])
    assert not torch.equal(layers.build(1).mix.weight, layers.build(2).mix.weight)


def test_flat_initial_values_are_those_of_the_built_layers():
    layers = Layers(Tied(), seed=3)
    flat = torch.cat([layers.initial(unit) for unit in range(len(layers.table.users))])
    assert flat.dtype == torch.float32
    assert flat.numel() == layers.table.num_elements
    for number, wanted in REFERENCE.items():
        for name, index in layers.table.of_layer(number):
            parameter = layers.table.parameters[index]
            assert torch.equal(flat[parameter.start : parameter.stop].view(parameter.shape), wanted[name])


def test_a_shared_weight_begins_as_its_first_layer_makes_it_and_is_built_apart():
    layers = Layers(Tied(), seed=3)
    first, last = layers.build(0).token.weight, layers.build(3).logits.weight
    assert torch.equal(first, last)
    assert first.data_ptr() != last.data_ptr()
    assert layers.table.users[-1] == (0, 3)
    assert layers.table.parameters[-1].name == "embedding.token.weight"


def chain(layers):
    return [layers.build(number) for number in range(layers.num_layers)]


def batch():
    return torch.randint(0, 11, (2, 2, 5), generator=torch.Generator().manual_seed(0))


def test_gradients_of_the_uses_of_a_weight_add_up_to_the_whole():
    layers, (inputs, targets) = Layers(Tied(), seed=3), batch()
    modules, whole = chain(layers), Whole(layers)
    x = inputs
    for module in modules:
        x = module(x)
    apart, together = layers.loss_sum(x, targets), whole.loss_sum(whole(inputs), targets)
    assert torch.equal(apart, together)
    apart.backward()
    together.backward()
    names = [name for name, _ in whole.named_parameters()]
    assert names.count("stack.0.token.weight") == 1
    assert "stack.3.logits.weight" not in names
    total = modules[0].token.weight.grad + modules[3].logits.weight.grad
    torch.testing.assert_close(total, whole.get_parameter("stack.0.token.weight").grad)
    assert torch.equal(modules[1].mix.weight.grad, whole.get_parameter("stack.1.mix.weight").grad)


def test_listed_modules_are_copied_with_their_values_and_stay_as_they_are():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    layers = Layers(net, seed=1, loss=loss_sum)
    built = layers.build(0)
    assert built.training
    assert not net.training
    with torch.no_grad():
        built.weight.zero_()
    assert torch.equal(layers.build(0).weight, net[0].weight)
    assert torch.equal(layers.initial(0), torch.cat([p.detach().flatten() for p in net[0].parameters()]))
    assert layers.initial(1).shape == (0,)
    assert layers.names == ("0", "1", "2")


def test_a_module_or_parameter_listed_twice_is_one_weight_with_two_uses():
    shared, lone = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    lone.weight = shared.weight
    layers = Layers([shared, nn.Tanh(), shared, lone], seed=1, loss=loss_sum)
    assert layers.table.users == ((0,), (1,), (2,), (3,), (0, 2, 3), (0, 2))
    assert layers.table.unit_sizes() == (0, 0, 0, 0, 16, 4)
    assert [parameter.name for parameter in layers.table.parameters] == ["0.weight", "0.bias"]
    built = [parameter for module in chain(layers) for parameter in module.parameters()]
    assert len({id(parameter) for parameter in built}) == len(built) == 5
    assert len({parameter.data_ptr() for parameter in built}) == 5
    assert len(list(Whole(layers).parameters())) == 2


def test_a_weight_with_two_names_in_one_layer_is_one_parameter_of_it():
    def make():
        layer = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        layer["b"].weight = layer["a"].weight
        return layer

    layers = Layers([LayerSpec(make, ties={"b.weight": "w"}), nn.Tanh()], seed=1, loss=loss_sum)
    assert [name for name, _ in layers.table.of_layer(0)] == ["a.weight", "a.bias", "b.bias"]
    assert layers.table.users == ((0,), (1,))
    tied = Layers(
        [LayerSpec(make, ties={"b.weight": "w"}), LayerSpec(make, ties={"a.weight": "w"})], seed=1, loss=loss_sum
    )
    whole = Whole(tied)
    assert whole.stack[1]["b"].weight is whole.stack[1]["a"].weight is whole.stack[0]["a"].weight


class Drawn(nn.Module):
    """Cannot be made without values."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3) * torch.linspace(0, 1, 3)[1].item())


class FromNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.from_numpy(np.ones((2, 3), np.float32)))


@pytest.mark.parametrize(
    "make", [Drawn, FromNumpy, Cut, Middle, Out, partial(nn.TransformerEncoderLayer, 8, 2, 8, 0.0)]
)
def test_shapes_known_in_advance_are_those_of_the_built_layer(make):
    layers = Layers([LayerSpec(make)], seed=1, loss=loss_sum)
    shapes = {f"0.{name}": tuple(parameter.shape) for name, parameter in layers.build(0).named_parameters()}
    assert layers.table.shapes() == shapes
    assert same(bits(layers.build(0)), bits(Layers([LayerSpec(make)], seed=1, loss=loss_sum).build(0)))


def test_layers_are_not_made_to_know_their_shapes():
    def make():
        made.append(torch.empty(()).device.type)
        return nn.Linear(1 << 20, 1 << 20)  # 4 TiB

    made: list[str] = []
    assert Layers([LayerSpec(make)], seed=1, loss=loss_sum).table.num_elements == (1 << 40) + (1 << 20)
    assert made == ["meta"]


def test_costs_are_products_and_a_small_share():
    costs, sizes, users = Layers(Tied(), seed=3).profile()
    assert costs == pytest.approx((1.32, 37.32, 37.32, 67.32))
    assert sizes == (0, 42, 42, 12, 66)
    assert users == ((0,), (1,), (2,), (3,), (0, 3))


def test_costs_that_are_given_stay_as_they_are():
    specs = [LayerSpec(nn.Tanh), LayerSpec(nn.Tanh, cost=7), nn.Linear(10, 10)]
    assert Layers(specs, seed=1, loss=loss_sum).profile()[0] == (2.0, 7.0, 102.0)
    assert Layers([nn.Tanh(), nn.LayerNorm(3)], seed=1, loss=loss_sum).profile()[0] == (1.0, 1.0)


class With:
    def __init__(self, *layers):
        self._layers = layers

    def layers(self):
        return list(self._layers)

    def loss_sum(self, output, targets):
        return loss_sum(output, targets)


class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.forgotten = nn.Linear(2, 2), nn.Linear(2, 2)

    def layers(self):
        return [self.used]

    loss_sum = With.loss_sum


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])


def frozen():
    layer = nn.Sequential(nn.Linear(2, 2))
    layer[0].bias.requires_grad_(False)
    return layer


def shifting(sizes=iter(range(2, 99))):
    return nn.Linear(next(sizes), 2)


KEPT = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (With(), "has no layers"),
        (object(), r"method layers\(\)"),
        (Attribute(), r"method layers\(\)"),
        (With(nn.Tanh(), 3), "layer 1 is a int; list modules or LayerSpecs"),
        (nn.Sequential(nn.Tanh()), r"loss_sum\(output, targets\), or pass loss=; summed"),
        (Partly(), r"\['forgotten.weight', 'forgotten.bias'\] belong to no layer"),
        (
            With(nn.Sequential(nn.Tanh(), nn.Dropout(0.1))),
            "^model = 'With': 0.1 draws by call count; use .*KeyedDropout",
        ),
        (With(nn.Tanh(), LayerSpec(partial(nn.Dropout, 0.1), name="drop")), "drop draws by call count"),
        (With(nn.Tanh(), nn.BatchNorm1d(8)), "1 mixes samples and keeps statistics"),
        (With(frozen()), r"0.0.bias is frozen; keep .* in a buffer"),
        (With(nn.Linear(2, 2).bfloat16()), "0.weight is torch.bfloat16; use .*autocast"),
        (With(LayerSpec(partial(nn.LazyLinear, 3))), "0.weight has no shape yet"),
        (With(LayerSpec(nn.Tanh, name="a"), LayerSpec(nn.Tanh, name="a")), "same name 'a'"),
        (With(LayerSpec(nn.Tanh, name="1"), nn.Tanh()), "same name '1'"),
        (
            With(LayerSpec(partial(nn.Linear, 2, 2), ties={"wait": "w"})),
            "ties 'wait', which it lacks; it has weight, bias",
        ),
        (
            With(
                LayerSpec(partial(nn.Linear, 2, 2), ties={"weight": "w"}), LayerSpec(Middle, ties={"mix.weight": "w"})
            ),
            r"0.weight is \(2, 2\) and 1.mix.weight is \(6, 6\)",
        ),
        (
            With(LayerSpec(lambda: nn.Sequential(Middle(), Middle()), ties={"0.mix.bias": "b", "1.mix.bias": "b"})),
            "twice",
        ),
        (With(LayerSpec(lambda: KEPT)), "must make a new layer at each call"),
        (With(LayerSpec(lambda: 3)), "build made int, not a module"),
    ],
)
def test_what_cannot_be_trained_layer_by_layer_is_refused(model, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        Layers(model, seed=1)
    assert caught.value.key == "model"


def test_a_layer_that_is_made_differently_each_time_is_refused():
    layers = Layers(With(LayerSpec(shifting)), seed=1)
    with pytest.raises(ConfigError, match="layer 0 was built with other parameters than before"):
        layers.build(0)


def test_a_layer_that_is_kept_from_when_it_had_no_values_is_refused():
    made = []
    layers = Layers(With(LayerSpec(lambda: made[0] if made else made.append(nn.Linear(2, 2)) or made[0])), seed=1)
    with pytest.raises(ConfigError, match="must make a new layer at each call"):
        layers.build(0)


def test_a_module_that_cannot_be_copied_is_refused():
    layer = nn.Linear(2, 2)
    layer.cache = layer.weight * 2
    with pytest.raises(ConfigError, match=r"layer 0 cannot be copied: .*; list a LayerSpec"):
        Layers(With(layer), seed=1).build(0)


@pytest.mark.parametrize("cost", [0, -1.0, float("nan"), float("inf")])
def test_costs_are_positive_numbers(cost):
    with pytest.raises(ConfigError, match="positive number"):
        LayerSpec(nn.Tanh, cost=cost)


def test_a_spec_is_given_what_makes_a_layer():
    with pytest.raises(ConfigError, match="lambda: layer"):
        LayerSpec(nn.Tanh())
