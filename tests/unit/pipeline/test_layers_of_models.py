"""Each model of the package, computed layer by layer with parameters apart, is the model computed as a whole."""

import pytest
import torch

from elaswave.config import Config
from elaswave.data.dataset import build_dataset
from elaswave.models.build import build_model
from elaswave.models.dropout import KeyedDropout, connect
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.split import Deferred, backward, split_linears
from elaswave.pipeline.whole import Whole
from elaswave.rng import Streams
from tests.support.gradients import Found

SAMPLES = (3, 11, 8)
SMALL = {"layers": 2, "width": 16, "heads": 2, "dropout": 0.2}
CONFIGS = {
    "gpt": {"model": {**SMALL, "sequence_length": 8}},
    "tied": {"model": {**SMALL, "sequence_length": 8, "tied": True}},
    "mixer": {"model": {**SMALL, "name": "mixer", "sequence_length": 64}, "data": {"source": "digits"}},
    "encoder": {"model": {**SMALL, "name": "encoder", "sequence_length": 16}, "data": {"source": "masked"}},
}


@pytest.fixture(params=CONFIGS)
def config(request):
    if request.param == "mixer":
        pytest.importorskip("sklearn")
    return Config.model_validate(CONFIGS[request.param])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(config):
    data = build_dataset(config)
    rows = torch.stack([data.sample(index) for index in SAMPLES])
    take_apart = getattr(data, "inputs_and_targets", lambda rows: (rows[:, :-1], rows[:, 1:]))
    return take_apart(rows)


def layers_of(config):
    return Layers(build_model(config.model, 5), seed=5)


def streams():
    made = Streams(7)
    made.at(1, SAMPLES)
    return made


def loss_of(layers, modules, inputs, targets):
    for module in modules:
        connect(module, streams())
        inputs = module(inputs)
    return layers.loss_sum(inputs, targets)


def built(layers):
    return [layers.build(number) for number in range(layers.num_layers)]


def test_layers_apart_compute_what_the_whole_does(config):
    layers, (inputs, targets) = layers_of(config), batch(config)
    modules, whole = built(layers), Whole(layers)
    apart, together = (loss_of(layers, part, inputs, targets) for part in (modules, [whole]))
    assert torch.equal(apart, together)
    apart.backward()
    together.backward()
    for parameter in layers.table.parameters:
        (first, name), *_ = parameter.uses
        total = whole.stack[first].get_parameter(name).grad
        uses = [modules[number].get_parameter(use).grad for number, use in parameter.uses]
        assert all(use.any() for use in uses), parameter.name
        if len(uses) == 1:
            assert torch.equal(uses[0], total), parameter.name
        else:
            torch.testing.assert_close(sum(uses), total)


@pytest.mark.parametrize("bf16", [False, True])
def test_layer_by_layer_with_weights_put_off(config, bf16):
    """As a pipeline does it: each layer's backward alone, activations cut off between, weight gradients last."""
    layers, (inputs, targets) = layers_of(config), batch(config)
    modules, plain = built(layers), built(layers)
    for module in (*modules, *plain):
        split_linears(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss_of(layers, plain, inputs, targets).backward()
        found = _pipelined(layers, modules, inputs, targets)
    for number, (module, wanted) in enumerate(zip(modules, plain, strict=True)):
        for (name, parameter), other in zip(module.named_parameters(), wanted.parameters(), strict=True):
            assert torch.equal(found[parameter], other.grad), (number, name)
            assert found[parameter].dtype == torch.float32


def _pipelined(layers, modules, inputs, targets):
    """Gradients by parameter."""
    passes, parts = [], (inputs,)
    for module in modules:
        connect(module, streams())
        ins = [part.detach().requires_grad_() if part.is_floating_point() else part for part in parts]
        out = module(ins[0] if len(ins) == 1 else tuple(ins))
        parts = out if isinstance(out, tuple) else (out,)
        passes.append((module, ins, parts))
    logits = parts[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(layers.loss_sum(logits, targets), logits)
    deferred, found = Deferred(), {}
    for module, ins, outs in reversed(passes):
        movable, parameters = [part for part in ins if part.requires_grad], list(module.parameters())
        gradients = backward(outs[0], gradient, [*movable, *parameters], deferred)
        found |= {p: g for p, g in zip(parameters, gradients[len(movable) :], strict=True) if g is not None}
        gradient = gradients[0] if movable else None
    assert len(deferred) > 0
    later = Found()
    deferred.compute(later)
    return found | later


def test_every_layer_is_refused_nowhere_and_built_equally(config):
    one, other = layers_of(config), layers_of(config)
    for number in reversed(range(one.num_layers)):
        for a, b in zip(one.build(number).parameters(), other.build(number).parameters(), strict=True):
            assert torch.equal(a, b)


def test_every_dropout_has_a_place_of_its_own(config):
    places = [(m.layer, m.site) for m in Whole(layers_of(config)).modules() if isinstance(m, KeyedDropout)]
    assert len(set(places)) == len(places) == 1 + 2 * config.model.layers
