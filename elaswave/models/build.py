"""From a name in the config to a model."""

import importlib
import inspect
from collections.abc import Callable

from torch import nn

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.gpt import GPT

KNOWN: dict[str, Callable[[Model, int], nn.Module]] = {"gpt": GPT}


def build_model(config: Model, seed: int) -> nn.Module:
    """Build the model that `config.name` names; the same bits for the same seed, on any worker.

    Args:
        config: `name` is one of `KNOWN`, or `package.module:Class` of a class that takes (config, seed) and has
            `layers()` and `loss_sum(output, targets)`.
        seed: of the initial weights.

    Raises:
        ConfigError: there is no such model.
    """
    if config.name in KNOWN:
        return KNOWN[config.name](config, seed)
    module, colon, name = config.name.partition(":")
    if not colon:
        known = ", ".join(sorted(KNOWN))
        raise ConfigError("model.name", config.name, f"use one of {known}, or package.module:Class")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError("model.name", config.name, f"cannot be imported: {error}") from error
    try:
        inspect.signature(make).bind(config, seed)
    except (TypeError, ValueError) as error:
        raise ConfigError("model.name", config.name, f"must take (config, seed): {error}") from error
    made = make(config, seed)
    missing = [method for method in ("layers", "loss_sum") if not hasattr(made, method)]
    if missing:
        raise ConfigError("model.name", config.name, f"lacks {' and '.join(missing)}")
    return made
