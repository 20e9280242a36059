"""`elaswave report`: what happened in a run; writes report.json, report.html and trace.json beside its events."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from elaswave.report.summary import Report, as_json
from elaswave.report.text import duration, recovery_table
from elaswave.telemetry.runs import find_run, write_report


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's arguments; `subparsers` as argparse's `add_subparsers` returns it."""
    parser = subparsers.add_parser("report", help="what happened in a run")
    _arguments(parser)
    return parser


def run(arguments: Sequence[str] | argparse.Namespace) -> int:
    """Write the report and print its table; returns 0.

    Raises:
        ConfigError: there is no such run.
    """
    args = arguments if isinstance(arguments, argparse.Namespace) else _parse(arguments)
    folder = find_run(args.run, args.runs)
    reference = find_run(args.reference, args.runs) if args.reference else None
    report = write_report(folder, reference)
    if args.json:
        print(json.dumps(as_json(report), allow_nan=False))
        return 0
    show(report, folder)
    return 0


def show(report: Report, folder: Path) -> None:
    """Print the table of recoveries, what is worth knowing of the run, and where to look further."""
    print(recovery_table(report.recoveries, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    print()
    for name, value in facts(report):
        print(f"{name:<14}{value}")
    print(f"{'report':<14}{folder / 'report.html'}")
    print(f"{'trace':<14}{folder / 'trace.json'} (open in ui.perfetto.dev)")


def facts(report: Report) -> list[tuple[str, str]]:
    """The lines under the table: name and value."""
    accounts, mttrs_s = report.ledger, report.mttrs_s
    last = accounts.steps[-1] if accounts.steps else None
    found = [
        ("steps", f"{report.last_step} of {report.target_steps or '?'}"),
        ("final loss", "-" if last is None or last.loss is None else f"{last.loss!r}"),
        ("samples", f"{accounts.samples} trained, {accounts.samples_lost} lost, {accounts.duplicate_samples} twice"),
    ]
    if accounts.unconfirmed_samples:
        found.append(("", f"{accounts.unconfirmed_samples} of them only vouched for by the step's own vote"))
    if mttrs_s:
        found.append(("MTTR", f"{duration(median(mttrs_s))} median, {duration(max(mttrs_s))} worst of {len(mttrs_s)}"))
    found.extend(
        ("healed", f"step {one.step + 1}, in {duration(one.stall_s)}: {'; '.join(one.found) or one.cause}")
        for one in report.healings
    )
    if last is not None and last.digest is not None:
        found.append(("state digest", last.digest))
    if report.comparison is not None:
        found.append(("reference", report.comparison.reason))
    found.append(("verdict", "good" if not report.failures else "; ".join(report.failures)))
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help="run folder, or its name in --runs (default: latest)")
    parser.add_argument("--reference", metavar="RUN", help="an unharmed run of the same config, to be equal to")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="parent of all run folders (default: runs)")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="elaswave report", description=__doc__)
    _arguments(parser)
    return parser.parse_args(list(words))
