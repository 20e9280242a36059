"""Digits are images and their classes, for models of that kind."""

import sys

import pytest
import torch

from elaswave.config import Config
from elaswave.data.dataset import build_dataset
from elaswave.errors import ConfigError


def config(**model):
    return Config.model_validate(
        {"model": {"name": "mixer", "sequence_length": 64, **model}, "data": {"source": "digits"}}
    )


def test_images_and_digits():
    pytest.importorskip("sklearn")
    data = build_dataset(config())
    images, digits = data.inputs_and_targets(torch.stack([data.sample(index) for index in range(len(data))]))
    assert (images.shape, digits.shape, images.dtype) == ((1797, 64), (1797, 1), torch.int64)
    assert (images.min(), images.max()) == (0, 240)
    assert digits.unique().tolist() == list(range(10))
    assert data.identity() == build_dataset(config()).identity()


@pytest.mark.parametrize(("values", "key"), [({"sequence_length": 81}, "sequence_length"), ({"classes": 9}, "classes")])
def test_models_for_other_images_are_refused(values, key):
    with pytest.raises(ConfigError) as caught:
        build_dataset(config(**values))
    assert caught.value.key == f"model.{key}"


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        build_dataset(config())
