"""From a name in the config to a model."""

import inspect
from collections.abc import Callable

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.encoder import Encoder
from elaswave.models.gpt import GPT
from elaswave.models.mixer import Mixer
from elaswave.models.spec import LayeredModel
from elaswave.plugins import named

KNOWN: dict[str, Callable[[Model], LayeredModel]] = {"encoder": Encoder, "gpt": GPT, "mixer": Mixer}


def build_model(config: Model, seed: int) -> LayeredModel:
    """Build the model that `config.name` names; the same bits for the same seed, on any worker.

    Args:
        config: `name` is one of `KNOWN`, or `package.module:Class` of a class that takes (config, seed) or (config)
            and has `layers()` and `loss_sum(output, targets)`.
        seed: of the initial weights of a model that makes its layers itself; LayerSpecs get theirs when they are built.

    Raises:
        ConfigError: there is no such model.
    """
    if config.name in KNOWN:
        return KNOWN[config.name](config)
    make = named("model.name", config.name, KNOWN)
    made = make(config, seed) if _takes(make, config, seed, name=config.name) else make(config)
    missing = [method for method in ("layers", "loss_sum") if not hasattr(made, method)]
    if missing:
        raise ConfigError("model.name", config.name, f"lacks {' and '.join(missing)}")
    return made


def _takes(make: Callable[..., LayeredModel], config: Model, seed: int, *, name: str) -> bool:
    """Whether a model is made from (config, seed); false when from (config) alone."""
    try:
        signature = inspect.signature(make)
        try:
            signature.bind(config, seed)
            return True
        except TypeError:
            signature.bind(config)
            return False
    except (TypeError, ValueError) as error:
        raise ConfigError("model.name", name, f"must take (config, seed) or (config): {error}") from error
