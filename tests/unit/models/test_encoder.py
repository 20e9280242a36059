"""The encoder looks at what is seen, on both sides, and answers where the mask is."""

import pytest
import torch

from elaswave.config import Model
from elaswave.models.encoder import MASK, Encoder
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole

SHAPE = Model(name="encoder", layers=2, width=32, heads=4, sequence_length=8, dropout=0.1)
TOKENS = torch.tensor([[3, MASK, 5, 6, 7, 8, MASK, 9], [MASK, 4, 5, 6, MASK, 8, 9, 10]])


def whole():
    return Whole(Layers(Encoder(SHAPE), seed=1)).eval()


def test_one_answer_per_mask_in_order_of_place():
    model = whole()
    logits = model(TOKENS)
    assert logits.shape == (2, 2, 256)
    torch.testing.assert_close(logits[1:], model(TOKENS[1:]))
    loss = model.loss_sum(logits, torch.tensor([[4, 8], [3, 7]])).item() / 4
    assert loss == pytest.approx(torch.log(torch.tensor(256.0)).item(), rel=0.03)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_what_is_seen_on_either_side_counts(place):
    other = TOKENS.clone()
    other[0, place] = 200
    assert not torch.allclose(whole()(TOKENS)[0], whole()(other)[0])


def test_activations_travel_with_what_is_seen():
    layers = Layers(Encoder(SHAPE), seed=1)
    hidden, seen = layers.build(1)(layers.build(0)(TOKENS))
    assert (hidden.shape, hidden.dtype, seen.dtype) == ((2, 8, 32), torch.float32, torch.bool)
    assert torch.equal(seen, TOKENS != MASK)


def test_the_output_shares_the_embedding():
    layers = Layers(Encoder(SHAPE), seed=1)
    assert layers.table.users[-1] == (0, 3)
    assert layers.table.parameters[-1].uses == ((0, "token.weight"), (3, "logits.weight"))
