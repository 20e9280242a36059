"""The model is causal, and shares its largest matrix when told to."""

import pytest
import torch

from elaswave.config import Model
from elaswave.models.gpt import GPT
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole

SHAPE = Model(layers=2, width=32, heads=4, sequence_length=16, dropout=0.1)


def whole(shape=SHAPE, seed=1):
    return Whole(Layers(GPT(shape), seed=seed))


@pytest.mark.parametrize("tied", [False, True])
def test_shapes_and_the_loss_of_an_untrained_model(tied):
    model = whole(SHAPE.model_copy(update={"tied": tied}))
    tokens = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (3, 16, 256)
    per_token = model.loss_sum(logits, tokens.flip(1)).item() / tokens.numel()
    assert per_token == pytest.approx(torch.log(torch.tensor(256.0)).item(), rel=0.02)


def test_no_token_sees_a_later_one():
    model = whole().eval()
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    later = tokens.clone()
    later[0, 10:] = 7
    torch.testing.assert_close(model(tokens)[:, :10], model(later)[:, :10])
    assert not torch.allclose(model(tokens)[:, 10:], model(later)[:, 10:])


def test_names_and_initial_weights():
    layers = Layers(GPT(SHAPE), seed=1)
    assert layers.names == ("embedding", "blocks.0", "blocks.1", "head")
    assert "blocks.1.attend.weight" in layers.table.shapes()
    block = layers.build(1)
    assert torch.all(block.norm_1.weight == 1)
    assert not block.attend.bias.any()
    assert block.attend.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.narrow.weight.std().item() == pytest.approx(0.01, rel=0.1), "smaller where it adds to the residual"


def test_the_output_shares_the_embedding_when_told_to():
    apart, tied = Layers(GPT(SHAPE), seed=1), Layers(GPT(SHAPE.model_copy(update={"tied": True})), seed=1)
    assert apart.table.users == ((0,), (1,), (2,), (3,))
    assert tied.table.users == ((0,), (1,), (2,), (3,), (0, 3))
    assert apart.table.num_elements - tied.table.num_elements == 256 * 32
