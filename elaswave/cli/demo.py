"""`elaswave demo`: train, kill a worker with SIGKILL, take in a replacement, and compare with a run nobody harmed."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from elaswave.cli import launch, report
from elaswave.errors import ConfigError
from elaswave.report.facts import Commit, History
from elaswave.report.mttr import Recovery
from elaswave.report.summary import Report
from elaswave.report.text import duration
from elaswave.telemetry.runs import write_report

CONFIG = Path("configs/train/gpt_tiny.toml")
FAULTS = Path("configs/faults/demo.toml")
HOME = Path(__file__).parents[2]
"""The checkout; the demo's configs lie there."""
MIN_WORKERS = 3
"""The scenario kills rank 2."""


def run(argv: Sequence[str]) -> int:
    """Run both jobs and print the report; 0 when a worker was lost and the run still ended with the unharmed bits.

    Raises:
        ConfigError: the configs of the checkout are missing, or there are too few workers.
    """
    workers = _parser().parse_args(argv).workers
    if workers < MIN_WORKERS:
        raise ConfigError("--workers", workers, f"give at least {MIN_WORKERS}: rank 2 is the one to be killed")
    job = [_file(CONFIG), "--workers", str(workers)]
    print(f"1. A small GPT learns Python's own source: {workers} workers under torchrun. Rank 2 will get kill -9.\n")
    wounded = launch.launch([*job, "--faults", _file(FAULTS), "--run.name=demo"], brief=True)
    if wounded.status:
        return wounded.status
    print("\n2. The same once more, with nobody harmed, to compare with.\n")
    unharmed = launch.launch([*job, "--run.name=reference", "--elasticity.spares=0"], brief=True)
    if unharmed.status:
        return unharmed.status
    print("\n3. What happened, in milliseconds, and whether it left a trace in the result.\n")
    return tell(wounded.folder, unharmed.folder)


def tell(wounded: Path, unharmed: Path) -> int:
    """Print the recovery table, the verdict and where to look further; returns the exit status."""
    found = write_report(wounded, unharmed)
    report.show(found, Path(os.path.relpath(wounded)))
    print()
    for one in found.recoveries:
        if (line := _replacement(found.history, one)) is not None:
            print(line)
    print(_verdict(found))
    return 0 if found.recoveries and not found.failures else 1


def _verdict(found: Report) -> str:
    if not found.recoveries:
        return "No worker was lost: the run was over before the kill. Try again on a less busy machine."
    if found.failures:
        return f"This should not have happened: {'; '.join(found.failures)}."
    return "Equal, bit for bit: the run that lost a worker ended with the parameters of the one that did not."


def _replacement(history: History, one: Recovery) -> str | None:
    """How soon somebody else worked in the place of who was lost."""
    rank = one.lost_ranks[0]
    commit = _first_commit(history, rank, one)
    if commit is None or one.fault_t is None:
        return None
    after = duration(commit.t - one.fault_t)
    return f"Another process has held rank {rank} since step {commit.step}, done {after} after the kill."


def _first_commit(history: History, rank: int, one: Recovery) -> Commit | None:
    """The first step of the one that took a lost rank's place."""
    since = [c for c in history.commits if c.rank == rank and c.epoch >= one.epoch]
    later = [c for c in since if c.worker_id not in one.lost_workers]
    return min(later, key=lambda commit: commit.t, default=None)


def _file(path: Path) -> str:
    for folder in (Path(), HOME):
        if (folder / path).is_file():
            return str(folder / path)
    raise ConfigError("demo", str(path), "not found; run the demo in a checkout of elaswave")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elaswave demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="worker processes (default 4)")
    return parser
