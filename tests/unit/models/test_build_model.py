"""Models are found by name, and what cannot be one is refused with the reason."""

import pytest
from torch import nn

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.build import build_model
from elaswave.models.encoder import Encoder
from elaswave.models.gpt import GPT
from elaswave.models.mixer import Mixer

SMALL = {"layers": 1, "width": 8, "heads": 2, "sequence_length": 4}


class Bare(nn.Module):
    def __init__(self, config, seed):
        super().__init__()


class Seeded(nn.Module):
    def __init__(self, config, seed):
        super().__init__()
        self.seed = seed

    def layers(self):
        return [self]

    def loss_sum(self, output, targets):
        return output.sum()


@pytest.mark.parametrize(("name", "kind"), [("gpt", GPT), ("mixer", Mixer), ("encoder", Encoder)])
def test_known_names_and_classes_are_built(name, kind):
    assert isinstance(build_model(Model(name=name, **SMALL), 1), kind)
    assert isinstance(build_model(Model(name=f"{kind.__module__}:{kind.__name__}", **SMALL), 1), kind)


def test_a_class_may_ask_for_the_seed():
    assert build_model(Model(name=f"{__name__}:Seeded", **SMALL), 5).seed == 5


class Lonely(nn.Module):
    def __init__(self):
        super().__init__()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gtp", "use one of encoder, gpt, mixer, or package.module:Class"),
        ("no.such.module:GPT", "cannot be imported"),
        ("elaswave.models.gpt:Gtp", "cannot be imported"),
        (":GPT", "cannot be imported"),
        (".gpt:GPT", "cannot be imported"),
        ("elaswave.models.transformer:INIT_STD", r"must take \(config, seed\) or \(config\): .* not a callable"),
        (f"{__name__}:Lonely", r"must take \(config, seed\) or \(config\)"),
        (f"{__name__}:Bare", "lacks layers and loss_sum"),
    ],
)
def test_what_cannot_be_a_model_is_refused(name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        build_model(Model(name=name, **SMALL), 1)
    assert caught.value.key == "model.name"
