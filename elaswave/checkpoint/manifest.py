"""What a checkpoint says about itself, as one JSON file beside the tensors; a folder that has it is complete."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elaswave.config import Config
from elaswave.errors import ConfigError

FILE = "elaswave.json"
FORMAT = 1
BYTES_MAX = 64 << 20

KEY = "checkpoint.resume"
NEEDED = (("model", None), ("training", "numerics"), ("optimizer", "name"))
"""Settings, whole sections or one key, without which the tensors mean something else."""
TOLD = ("data", "training", "optimizer")
"""Sections whose other settings may be changed on purpose; whoever does is told that the bits will differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole state on disk.

    Attributes:
        step: after which the state was so.
        digest: of the whole state, 16 hexadecimal digits, as announced at the commit.
        num_parts: files that the tensors are spread over, one per worker of that time.
        scalars: what the optimizer keeps beside its tensors.
        shapes: of each parameter, by its name.
        config: of the run that wrote it.
        corpus: identity of its data.
        versions: of what changes bits, such as torch.
    """

    step: int
    digest: str
    num_parts: int
    scalars: Mapping[str, float | int | bool | None]
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    corpus: str
    versions: Mapping[str, str]

    def text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)


def read(folder: Path) -> Manifest:
    """The manifest of a complete checkpoint.

    Raises:
        ConfigError: it is not there, not readable, or of another format.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ValueError(f"larger than {BYTES_MAX >> 20} MiB")
        values = json.loads(path.read_text())
        if values.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        shapes = {str(name): tuple(int(size) for size in shape) for name, shape in values.pop("shapes").items()}
        manifest = Manifest(shapes=shapes, **values)
        int(manifest.digest, 16)
    except FileNotFoundError:
        raise ConfigError(KEY, str(folder), f"holds no complete checkpoint: there is no {FILE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(KEY, str(folder), f"{FILE} cannot be used ({error}); choose another checkpoint") from error
    return manifest


def check(manifest: Manifest, config: Config, folder: Path) -> tuple[str, ...]:
    """Whether a run can go on from a checkpoint.

    Returns:
        Settings that differ although they decide the bits, one text each.

    Raises:
        ConfigError: the tensors would not fit, or not mean the same.
    """
    now: Mapping[str, Any] = config.model_dump(mode="json")
    for section, key in NEEDED:
        for name in [key] if key else sorted(now[section]):
            before, after = manifest.config.get(section, {}).get(name), now[section][name]
            if before != after:
                raise ConfigError(
                    KEY, str(folder), f"was written with {section}.{name} = {before!r}, this run has {after!r}"
                )
    if manifest.step > config.training.steps:
        raise ConfigError(
            KEY, str(folder), f"is of step {manifest.step}, beyond training.steps = {config.training.steps}"
        )
    return tuple(
        f"{section}.{name} = {after!r}, was {manifest.config.get(section, {}).get(name)!r}"
        for section in TOLD
        for name, after in now[section].items()
        if manifest.config.get(section, {}).get(name) != after
    )
