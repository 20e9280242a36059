"""What is masked depends on the sample alone, and can be restored from the targets."""

import numpy as np
import pytest
import torch

from elaswave.config import Config
from elaswave.data.dataset import TokenDataset, build_dataset
from elaswave.data.masked import MaskedDataset
from elaswave.errors import ConfigError
from elaswave.models.encoder import MASK


def masked(length=20):
    return MaskedDataset(TokenDataset(np.arange(1, 202, dtype=np.uint16), length, 256), length)


def test_targets_are_what_the_masks_hide():
    data = masked()
    assert len(data) == 10
    for index in range(10):
        row = data.sample(index)
        inputs, targets = data.inputs_and_targets(row[None])
        assert (inputs.shape, targets.shape, row.dtype) == ((1, 20), (1, 3), torch.int64)
        assert torch.equal(
            inputs[inputs != MASK],
            torch.tensor([t for t in range(20 * index + 1, 20 * index + 21) if t not in targets]),
        )
        inputs[inputs == MASK] = targets.flatten()
        assert inputs[0].tolist() == list(range(20 * index + 1, 20 * index + 21))


def test_masks_are_a_function_of_the_sample_and_differ_between_samples():
    assert all(torch.equal(masked().sample(index), masked().sample(index)) for index in (9, 0, 4))
    places = {tuple((masked().sample(index)[:20] == MASK).nonzero().flatten().tolist()) for index in range(10)}
    assert len(places) > 7
    seen = torch.stack([masked().sample(index)[:20] != MASK for index in range(10)]).all(0)
    assert seen.sum() < 10, "no place is favoured"


def test_from_the_config_over_the_standard_library():
    data = build_dataset(Config.model_validate({"model": {"sequence_length": 8}, "data": {"source": "masked"}}))
    plain = build_dataset(Config.model_validate({"model": {"sequence_length": 8}}))
    assert len(data) == len(plain)
    assert data.identity() != plain.identity()
    assert data.sample(0).shape == (9,)


def test_something_has_to_be_seen():
    with pytest.raises(ConfigError, match="so that one is seen"):
        build_dataset(Config.model_validate({"model": {"sequence_length": 1}, "data": {"source": "masked"}}))
