"""`elaswave demo`: train, kill a worker with SIGKILL, take in a replacement, and compare with a run nobody harmed."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from elaswave.cli import launch, report
from elaswave.errors import ConfigError
from elaswave.telemetry.runs import find_run

CONFIG = Path("configs/train/gpt_tiny.toml")
FAULTS = Path("configs/faults/kill_one.toml")
HOME = Path(__file__).parents[2]
"""The checkout; the demo's configs lie there."""


def run(argv: Sequence[str]) -> int:
    """Run both jobs and print the report; 0 when the wounded run ended with the bits of the unharmed one.

    Raises:
        ConfigError: the configs of the checkout are missing.
    """
    args = _parser().parse_args(argv)
    config, faults = _file(CONFIG), _file(FAULTS)
    print(f"1. Training a small GPT on Python's own source, {args.workers} workers under torchrun; one will be killed.")
    status = launch.run([config, "--workers", str(args.workers), "--faults", faults, "--run.name=demo"])
    if status:
        return status
    wounded = find_run("latest").resolve()
    print("\n2. The same again, with nobody harmed, as the reference.")
    status = launch.run([config, "--workers", str(args.workers), "--run.name=reference", "--elasticity.spares=0"])
    if status:
        return status
    unharmed = find_run("latest").resolve()
    print("\n3. What happened, and whether it left a trace in the result:\n")
    return _tell(wounded, unharmed)


def _tell(wounded: Path, unharmed: Path) -> int:
    """Print the recovery table, the verdict and where to look further."""
    near = [
        str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        for folder in (wounded, unharmed)
    ]
    return report.run([near[0], "--reference", near[1]])


def _file(path: Path) -> str:
    for folder in (Path(), HOME):
        if (folder / path).is_file():
            return str(folder / path)
    raise ConfigError("demo", str(path), "not found; run the demo in a checkout of elaswave")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elaswave demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="worker processes (default 4)")
    return parser
