"""The model is causal, has whole layers, and the same weights wherever it is built."""

import pytest
import torch

from elaswave.config import Model
from elaswave.models.dropout import KeyedDropout
from elaswave.models.gpt import GPT, Block, initialise

SHAPE = Model(layers=2, width=32, heads=4, sequence_length=16, dropout=0.1)


def test_shapes_and_the_loss_of_an_untrained_model():
    model = GPT(SHAPE, seed=1)
    tokens = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 16, 256)
    per_token = model.loss_sum(logits, tokens).item() / tokens.numel()
    assert per_token == pytest.approx(torch.log(torch.tensor(256.0)).item(), rel=0.02)


def test_no_token_sees_a_later_one():
    model = GPT(SHAPE, seed=1).eval()
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    later = tokens.clone()
    later[0, 10:] = 7
    torch.testing.assert_close(model(tokens)[:, :10], model(later)[:, :10])
    assert not torch.allclose(model(tokens)[:, 10:], model(later)[:, 10:])


def test_every_parameter_belongs_to_one_layer():
    model = GPT(SHAPE, seed=1)
    owned = [id(parameter) for layer in model.layers() for parameter in layer.parameters()]
    assert len(model.layers()) == SHAPE.layers + 2
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def test_weights_depend_on_the_seed_and_nothing_else():
    torch.manual_seed(1)
    one = GPT(SHAPE, seed=1).state_dict()
    torch.manual_seed(2)
    torch.randn(5)
    again, other = GPT(SHAPE, seed=1).state_dict(), GPT(SHAPE, seed=2).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["stack.1.attend.weight"], other["stack.1.attend.weight"])
    assert not torch.equal(one["stack.1.attend.weight"], one["stack.2.attend.weight"])


def test_one_layer_alone_gets_the_bits_it_has_in_the_whole():
    whole, alone = GPT(SHAPE, seed=5).layers()[2], Block(SHAPE, layer=2)
    initialise(alone, 5, 2, residual_std=0.02 / (2 * SHAPE.layers) ** 0.5)
    for a, b in zip(whole.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_any_seed_will_do(seed):
    GPT(SHAPE, seed=seed)


def test_every_dropout_has_a_place_of_its_own():
    places = [(m.layer, m.site) for m in GPT(SHAPE, seed=1).modules() if isinstance(m, KeyedDropout)]
    assert len(set(places)) == len(places) == 1 + 2 * SHAPE.layers
