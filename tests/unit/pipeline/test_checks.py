"""Every kind of layer whose sums would not be exact is refused, by name and with its remedy; all others pass."""

from functools import partial

import pytest
import torch
from torch import nn

from elaswave.errors import ConfigError
from elaswave.models.dropout import KeyedDropout
from elaswave.pipeline.checks import check_layer, refuse


class Net:
    """What the errors name."""


def within(layer: nn.Module) -> nn.Module:
    """The layer as part of another."""
    return nn.Sequential(nn.Tanh(), nn.ModuleDict({"inner": layer}))


def frozen(name: str) -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.get_parameter(name).requires_grad_(False)
    return layer


DRAWS = "draws by call count; use elaswave.models.dropout.KeyedDropout"
MIXES = "mixes samples and keeps statistics; use a norm within the sample, as LayerNorm"
REFUSED = [
    *((partial(kind, 0.1), DRAWS) for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)),
    (partial(nn.FeatureAlphaDropout, 0.1), DRAWS),
    *((partial(kind, 3), MIXES) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)),
    (partial(nn.BatchNorm1d, 3, affine=False, track_running_stats=False), MIXES),
]
"""Modules without a problem in their parameters."""
REFUSED_PARAMETERS = [
    (partial(nn.LazyLinear, 2), "weight", "has no shape yet; give its sizes"),
    (partial(nn.Linear, 2, 2, dtype=torch.bfloat16), "weight", "is torch.bfloat16; use torch.float32, and autocast"),
    (partial(nn.Linear, 2, 2, dtype=torch.float64), "weight", "is torch.float64; use torch.float32, and autocast"),
    (partial(frozen, "weight"), "weight", r"is frozen; keep what is not trained in a buffer \(register_buffer\)"),
    (partial(frozen, "bias"), "bias", r"is frozen; keep what is not trained in a buffer \(register_buffer\)"),
]
PASS = [
    nn.Tanh,
    partial(nn.Linear, 2, 2),
    partial(nn.LayerNorm, 4),
    partial(nn.GroupNorm, 2, 4),
    partial(nn.Embedding, 4, 2),
    partial(nn.Dropout, 0.0),
    partial(KeyedDropout, 0.5, layer=0, site=0),
    partial(nn.TransformerEncoderLayer, 8, 2, 8, 0.0),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_modules_that_draw_or_mix_are_refused_wherever_they_are(make, reason):
    with pytest.raises(ConfigError, match=rf"^model = 'Net': blocks.3 {reason}$") as caught:
        check_layer(Net(), "blocks.3", make())
    assert caught.value.key == "model"
    with pytest.raises(ConfigError, match=rf"^model = 'Net': blocks.3.1.inner {reason}$"):
        check_layer(Net(), "blocks.3", within(make()))


@pytest.mark.parametrize(("make", "name", "reason"), REFUSED_PARAMETERS)
def test_parameters_that_cannot_be_summed_are_refused_wherever_they_are(make, name, reason):
    with pytest.raises(ConfigError, match=rf"^model = 'Net': head.{name} {reason}"):
        check_layer(Net(), "head", make())
    with pytest.raises(ConfigError, match=rf"^model = 'Net': head.1.inner.{name} {reason}"):
        check_layer(Net(), "head", within(make()))


@pytest.mark.parametrize("make", PASS)
def test_other_layers_pass(make):
    check_layer(Net(), "0", make())
    check_layer(Net(), "0", within(make()))


def test_a_layer_without_memory_behind_its_shapes_is_looked_at_too():
    with torch.device("meta"):
        check_layer(Net(), "0", nn.Linear(1 << 20, 1 << 20))
        with pytest.raises(ConfigError, match=r"is torch\.float16"):
            check_layer(Net(), "0", nn.Linear(2, 2).half())


def test_buffers_may_be_of_any_kind():
    layer = nn.Linear(2, 2)
    layer.register_buffer("table", torch.ones(2, dtype=torch.int64))
    layer.register_buffer("small", torch.ones(2, dtype=torch.float16))
    check_layer(Net(), "0", layer)


def test_the_first_problem_is_told():
    both = nn.Sequential(nn.Dropout(0.5), frozen("bias"))
    with pytest.raises(ConfigError, match=r"0.1.bias is frozen"):
        check_layer(Net(), "0", both)


def test_an_error_names_the_kind_of_the_model():
    error = refuse(Net(), "because")
    assert (error.key, error.value, error.remedy) == ("model", "Net", "because")
