"""What must be equal on every worker of a job, reduced to digests that are compared when a worker joins."""

import hashlib
import json
import platform
from typing import Any

import torch

from elaswave.config import Config

SHARED_SECTIONS = ("model", "data", "training", "optimizer", "parallelism", "snapshot", "checkpoint")


def config_digest(config: Config, corpus: str) -> str:
    """Digest of the settings that decide the bits of a run, and of the corpus.

    Args:
        config: the whole run.
        corpus: identity of the data, as the dataset tells it.
    """
    values: dict[str, Any] = config.model_dump(mode="json")
    shared = {name: values[name] for name in SHARED_SECTIONS}
    text = json.dumps({**shared, "corpus": corpus}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings(config: Config, corpus: str) -> dict[str, str]:
    """The settings behind the digest that are not the defaults, by dotted key, so that a refusal can name one."""
    default = Config().model_dump(mode="json")
    values: dict[str, Any] = config.model_dump(mode="json")
    return {"data.corpus": corpus} | {
        f"{section}.{key}": json.dumps(value)
        for section in SHARED_SECTIONS
        for key, value in values[section].items()
        if value != default[section][key]
    }


def versions() -> dict[str, str]:
    """Versions that change bits."""
    return {"torch": torch.__version__, "python": ".".join(platform.python_version_tuple()[:2])}
