"""`elaswave bench NAME`: measure one claim of the README, all contenders in turns, and say whether it holds."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

BENCHES = {
    "communicator": "repair after a loss, collectives, freeing the blocked; beside gloo",
    "consistency": "wounded runs against one worker, bit for bit; deviation of rival behaviours on the same faults",
    "continual": "one task after another: what optimizers and elastic weights keep of earlier tasks, at what cost",
    "migration": "what it costs that a layer changes its stage: blocking or not, contiguous or interleaved ZeRO",
    "mttr": "from a SIGKILL to the survivors' next step; beside torchft and a torchrun restart",
    "overhead": "a healthy step beside those of DDP, ZeRO optimizers and a 1F1B pipeline that survive nothing",
    "planner": "a plan for up to a million workers: how long it takes, how even it is",
    "snapshot": "what copies of the optimizer state on neighbours cost per step",
    "throughput": "what is left when ranks are lost for good, by policy: under a virtual clock, against the bound",
}
WIDTH = 160


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's arguments; `subparsers` as argparse's `add_subparsers` returns it."""
    parser = subparsers.add_parser("bench", help="measure what the README claims", description=__doc__)
    _arguments(parser)
    return parser


def run(arguments: Sequence[str] | argparse.Namespace) -> int:
    """Measure and print; returns 0 when it measured, whatever it measured.

    Raises:
        ConfigError: an argument is wrong.
        BenchError: a contender failed.
    """
    args = arguments if isinstance(arguments, argparse.Namespace) else _parse(arguments)
    from rich.console import Console

    from elaswave.bench.result import as_json, as_table, machine

    bench = importlib.import_module(f"elaswave.bench.{args.bench}")
    options = _options(args.bench, bench.add_arguments, args.rest)
    on = machine()
    signal.signal(signal.SIGTERM, _terminated)  # so that what was started is also ended
    result = bench.run(options)
    if options.json:
        print(as_json(result, on), flush=True)
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(as_table(result))
    return 0


def _terminated(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {text}" for name, text in BENCHES.items())
    parser.add_argument("bench", choices=sorted(BENCHES), metavar="NAME", help=listed)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="see: elaswave bench NAME --help")


def _options(name: str, add_arguments: Callable[[argparse.ArgumentParser], None], words: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(prog=f"elaswave bench {name}", description=BENCHES[name], allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of tables")
    return parser.parse_args(list(words))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="elaswave bench", description=__doc__)
    _arguments(parser)
    return parser.parse_args(list(words))
