"""`elaswave export`: the parameters of a checkpoint as one safetensors file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from elaswave.checkpoint import folders
from elaswave.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """Write the file; returns 0.

    Raises:
        ConfigError: there is no such checkpoint, or the file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="elaswave export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of a run: its newest; or runs/.../step-00000040")
    parser.add_argument("file", metavar="FILE", help="to write, such as model.safetensors")
    arguments = parser.parse_args(list(argv))
    folder, target = folders.resolve(arguments.checkpoint), Path(arguments.file)
    from elaswave.checkpoint.export import export  # what is wrong with the arguments is told before torch is imported

    try:
        found = export(folder, target)
    except OSError as error:
        raise ConfigError("FILE", arguments.file, f"cannot be written: {error.strerror or error}") from error
    print(f"{len(found.shapes)} tensors of step {found.step}, {target.stat().st_size:,} bytes: {target}")
    return 0
