"""Dropout applies the mask it is given, forward and backward, and asks for it by its place."""

import torch

from elaswave.models.dropout import KeyedDropout, connect


class Recorded:
    def __init__(self) -> None:
        self.asked = []

    def mask(self, layer, site, shape, keep):
        self.asked.append((layer, site, shape, keep))
        return torch.arange(torch.Size(shape).numel()).view(shape) % 2 == 0


def dropout(rate=0.5, streams=None):
    module = KeyedDropout(rate, layer=3, site=1)
    module.streams = streams
    return module


def test_mask_scales_what_it_keeps_and_zeroes_the_rest():
    x = torch.ones(2, 4, requires_grad=True)
    y = dropout(0.5, Recorded())(x)
    assert y.tolist() == [[2.0, 0.0, 2.0, 0.0]] * 2
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_gradient_matches_finite_differences():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dropout(0.25, Recorded()), (x,))


def test_place_and_shape_are_asked_for():
    source = Recorded()
    dropout(0.25, source)(torch.ones(2, 4))
    assert source.asked == [(3, 1, (2, 4), 0.75)]


def test_identity_without_rate_in_evaluation_and_without_a_source():
    x = torch.ones(2, 4)
    assert dropout(0.0, Recorded())(x) is x
    assert dropout(0.5, Recorded()).eval()(x) is x
    assert dropout(0.5)(x) is x


def test_connect_reaches_every_dropout():
    model, source = torch.nn.Sequential(dropout(), torch.nn.Sequential(dropout())), Recorded()
    connect(model, source)
    model(torch.ones(1, 2))
    assert len(source.asked) == 2
