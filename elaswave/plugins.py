"""From `package.module:Class` in the config to what it names."""

import importlib
from collections.abc import Iterable
from typing import Any

from elaswave.errors import ConfigError


def named(key: str, value: str, known: Iterable[str]) -> Any:
    """What `package.module:Class` names.

    Args:
        key: of the setting.
        value: what it says.
        known: what else it could say.

    Raises:
        ConfigError: there is no such thing.
    """
    module, colon, name = value.partition(":")
    if not colon:
        raise ConfigError(key, value, f"use one of {', '.join(sorted(known))}, or package.module:Class")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(key, value, f"cannot be imported: {error}") from error
