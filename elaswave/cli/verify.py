"""`elaswave verify`: compares two runs step by step, bit by bit; 0 equal, 1 different, 2 cannot be compared."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from elaswave.report.compare import Comparison, Verdict, compare
from elaswave.report.text import table
from elaswave.telemetry.runs import find_run, read_history

EXIT_STATUS = {Verdict.EQUAL: 0, Verdict.DIFFERENT: 1, Verdict.INCOMPARABLE: 2}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's arguments; `subparsers` as argparse's `add_subparsers` returns it."""
    parser = subparsers.add_parser("verify", help="compare two runs step by step, bit by bit")
    _arguments(parser)
    return parser


def run(arguments: Sequence[str] | argparse.Namespace) -> int:
    """Print what two runs have in common; returns the status of `EXIT_STATUS`.

    Raises:
        ConfigError: there is no such run.
    """
    args = arguments if isinstance(arguments, argparse.Namespace) else _parse(arguments)
    folders = [find_run(name, args.runs) for name in (args.run_a, args.run_b)]
    found = compare(*(read_history(folder) for folder in folders))
    if args.json:
        print(json.dumps(asdict(found)))
    else:
        _show(found, args.run_a, args.run_b)
    return EXIT_STATUS[found.verdict]


def _show(found: Comparison, a: str, b: str) -> None:
    print(f"{found.verdict}: {found.reason}")
    if found.verdict is not Verdict.INCOMPARABLE:
        print(f"equal steps: {found.equal_steps} of {found.common_steps}")
    if found.differences:
        first = "" if found.first_mismatch_step is None else f"step {found.first_mismatch_step}"
        print()
        print(table((first, a, b), [(d.what, d.a, d.b) for d in found.differences], left=(0, 1, 2)))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", metavar="RUN_A", help="run folder, or its name in --runs")
    parser.add_argument("run_b", metavar="RUN_B", help="the same")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="parent of all run folders (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="elaswave verify", description=__doc__)
    _arguments(parser)
    return parser.parse_args(list(words))
