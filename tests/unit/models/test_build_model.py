"""Models are found by name, and what cannot be one is refused with the reason."""

import pytest
from torch import nn

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.build import build_model
from elaswave.models.gpt import GPT

SMALL = {"layers": 1, "width": 8, "heads": 2, "sequence_length": 4}


class Bare(nn.Module):
    def __init__(self, config, seed):
        super().__init__()


def test_known_names_and_classes_are_built():
    assert isinstance(build_model(Model(name="gpt", **SMALL), 1), GPT)
    assert isinstance(build_model(Model(name="elaswave.models.gpt:GPT", **SMALL), 1), GPT)


class Lonely(nn.Module):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gtp", "use one of gpt"),
        ("no.such.module:GPT", "cannot be imported"),
        ("elaswave.models.gpt:Gtp", "cannot be imported"),
        (":GPT", "cannot be imported"),
        (".gpt:GPT", "cannot be imported"),
        ("elaswave.models.gpt:INIT_STD", r"must take \(config, seed\): .* not a callable"),
        (f"{__name__}:Lonely", r"must take \(config, seed\)"),
        (f"{__name__}:Bare", "lacks layers and loss_sum"),
    ],
)
def test_what_cannot_be_a_model_is_refused(name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        build_model(Model(name=name, **SMALL), 1)
    assert caught.value.key == "model.name"
