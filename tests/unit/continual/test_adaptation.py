"""Losses of adaptation by words: their least values, what they punish, and that shards of a batch are not the batch."""

import pytest
import torch
from torch.nn import functional

from elaswave.continual import adaptation


def rows(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))


def test_variations_find_their_least_loss():
    count = 6
    target = 3 * rows(1, seed=1)[0]
    offsets = torch.nn.Parameter(rows(count))
    optimizer = torch.optim.Adam([offsets], lr=0.002, betas=(0.0, 0.99))
    for _ in range(1500):
        optimizer.zero_grad()
        adaptation.variation_loss(target, offsets).backward()
        optimizer.step()
    meant = adaptation.variation_loss(target, offsets.detach(), diversity=0.0)
    assert float(meant) == pytest.approx(adaptation.least_variation_loss(count), abs=5e-3)
    directions = functional.normalize(offsets.detach(), dim=1)
    assert (directions @ directions.T - torch.eye(count)).abs().max() < 0.01


def test_the_least_loss_of_six_variations():
    assert adaptation.least_variation_loss(6) == pytest.approx(0.16088, abs=1e-5)


def test_the_least_is_reached_by_right_angles_that_lean_equally():
    count, width = 4, 9
    basis = torch.linalg.qr(rows(width, width))[0].T
    offsets, target = basis[:count], 2 * basis[:count].sum(0)
    assert float(adaptation.variation_loss(target, offsets)) == pytest.approx(
        adaptation.least_variation_loss(count), abs=1e-6
    )


def test_variations_are_as_far_from_the_text_as_it_is_long():
    target = rows(1, seed=1)[0]
    gaps = (adaptation.variations(target, rows(5)) - target).norm(dim=1)
    torch.testing.assert_close(gaps, target.norm().expand(5))


def test_directions_alone_do_not_see_that_images_have_become_alike():
    texts = rows(7)
    alike, spread = texts.mean(0).expand(7, -1), texts
    assert float(adaptation.direction_loss(alike, texts.mean(0))) == pytest.approx(0, abs=1e-6)
    for centred in (True, False):
        assert float(adaptation.moment_loss(spread, texts, 1.0, centred=centred)) == pytest.approx(0, abs=1e-5)
        assert float(adaptation.moment_loss(alike, texts, 1.0, centred=centred)) > 0.5


def test_centred_moments_do_not_depend_on_the_number_of_samples():
    texts, images = rows(7), rows(4, seed=2)
    once = adaptation.moment_loss(images, texts, 1.0)
    torch.testing.assert_close(adaptation.moment_loss(images.repeat(3, 1), texts, 1.0), once)
    literal = adaptation.moment_loss(images, texts, 1.0, centred=False)
    assert float(adaptation.moment_loss(images.repeat(3, 1), texts, 1.0, centred=False)) > 1.5 * float(literal)


def test_the_mean_over_ranks_is_another_objective():
    texts, images = rows(7), rows(8, seed=2)
    apart = torch.stack([adaptation.moment_loss(part, texts, 1.0) for part in images.split(4)]).mean()
    assert not torch.isclose(apart, adaptation.moment_loss(images, texts, 1.0), rtol=0.01)


def test_relations_stay_when_all_images_turn_together():
    source, turn = functional.normalize(rows(6), dim=1), torch.linalg.qr(rows(16, 16, seed=3))[0]
    assert float(adaptation.relation_loss(source, source @ turn)) == pytest.approx(0, abs=1e-6)
    assert float(adaptation.relation_loss(source, source[:1].expand(6, -1))) > 1e-3
