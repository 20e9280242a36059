"""The mixer cuts images into patches and learns classes; images it cannot cut are refused."""

import pytest
import torch

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.mixer import Mixer, Patches
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole

SHAPE = Model(name="mixer", layers=2, width=16, sequence_length=64, patch=2, classes=10, dropout=0.1)


def test_a_patch_is_a_square_of_the_image():
    layer = Patches(Model(name="mixer", width=4, sequence_length=16, patch=2))
    with torch.no_grad():
        layer.embed.weight.copy_(torch.eye(4))
        layer.embed.bias.fill_(0.5)
    patches = (layer(torch.arange(16)[None]) * 255).round().int()
    assert patches.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_it_learns_which_half_of_an_image_is_bright():
    model = Whole(Layers(Mixer(SHAPE), seed=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    targets = torch.arange(16)[:, None] % 2
    images = torch.randint(0, 40, (16, 64), generator=torch.Generator().manual_seed(0))
    images += 200 * ((torch.arange(64) < 32) == targets.bool())
    assert model(images).shape == (16, 10)
    for _ in range(30):
        optimizer.zero_grad()
        model.loss_sum(model(images), targets).backward()
        optimizer.step()
    assert torch.equal(model(images).argmax(1), targets[:, 0])


def test_costs_are_multiplications_per_image():
    costs, _, _ = Layers(Mixer(SHAPE), seed=1).profile()
    assert costs == (64 * 16, *[4 * 16 * 16**2 + 8 * 16 * 16**2] * 2, 16 * 26)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"sequence_length": 65}, "model.sequence_length"), ({"patch": 3}, "model.patch")],
)
def test_images_that_cannot_be_cut_are_refused(values, key):
    with pytest.raises(ConfigError) as caught:
        Mixer(SHAPE.model_copy(update=values))
    assert caught.value.key == key


def test_it_computes_in_bfloat16_as_told():
    model = Whole(Layers(Mixer(SHAPE), seed=1)).to(torch.bfloat16)
    images = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    assert model(images).dtype == torch.bfloat16
