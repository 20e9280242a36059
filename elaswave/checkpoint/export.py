"""The parameters of a checkpoint as one safetensors file, by name and in their own shape, for any other program."""

import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from elaswave.checkpoint import manifest
from elaswave.checkpoint.tensors import MASTER, Span, pieces, read_into


def export(folder: Path, target: Path) -> manifest.Manifest:
    """Write the parameters of a complete checkpoint; nothing is at `target` unless it is whole.

    Args:
        folder: of the checkpoint.
        target: file to write; replaced when it is there.

    Returns:
        What the checkpoint says about itself.

    Raises:
        ConfigError: the checkpoint cannot be read.
        OSError: the file cannot be written.
    """
    found = manifest.read(folder)
    spans: list[Span] = []
    for name, shape in found.shapes.items():
        start = spans[-1][2] if spans else 0
        spans.append((name, start, start + math.prod(shape)))
    flat = torch.empty(spans[-1][2] if spans else 0)
    read_into(folder, list(pieces(spans, [(0, flat.numel())], {MASTER: flat})))
    named = {name: flat[start:stop].reshape(found.shapes[name]).clone() for name, start, stop in spans}
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(named, aside, {"step": str(found.step), "digest": found.digest, "format": "pt"})
        os.replace(aside, target)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        aside.unlink(missing_ok=True)
    return found
