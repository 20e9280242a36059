"""The dynamic communicator beside what is built on gloo: repair after a loss, collectives, and freeing the blocked."""

import argparse
from collections.abc import Sequence
from typing import Any

from elaswave.bench import collectives, freed, recovery_time
from elaswave.bench.result import Metrics, Result, Spread, Target, spread
from elaswave.errors import ConfigError

PARTS = ("recovery", "collectives", "freed")
TIMEOUT_PER_REPETITION_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=sorted(recovery_time.GRIDS), help="sizes of the repaired job"
    )
    parser.add_argument("--repetitions", type=int, default=9, help="of every contender, in turns (default 9)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")


def run(arguments: argparse.Namespace) -> Result:
    """Measure what was asked for; call it before this process has threads.

    Raises:
        ConfigError: a number of ranks that has no grid.
        BenchError: a contender failed.
    """
    check_ranks(arguments.ranks)
    found = _Found()
    if "recovery" in arguments.parts:
        found.recovery(sorted(set(arguments.ranks)), arguments.repetitions)
    if "collectives" in arguments.parts:
        found.collectives(arguments.repetitions)
    if "freed" in arguments.parts:
        found.freed(arguments.repetitions)
    return Result(
        bench="communicator",
        config={
            "ranks": sorted(set(arguments.ranks)),
            "grids": {str(size): list(recovery_time.GRIDS[size]) for size in sorted(set(arguments.ranks))},
            "repetitions": arguments.repetitions,
            "parts": list(arguments.parts),
            "all_reduce_bytes": 4 * recovery_time.ELEMENTS,
            "collective_ranks": collectives.RANKS,
            "victim_bytes": freed.VICTIM_BYTES,
        },
        contenders=found.contenders,
        ratios=found.ratios,
        targets=tuple(found.targets),
        notes=(
            "recovered_ms: from when all survivors know of the loss until the slowest has used each repaired group",
            "every rebuild has a store that outlives the loss; a blocked gloo survivor would first have to time out",
        ),
    )


def check_ranks(ranks: Sequence[int]) -> None:
    for size in ranks:
        if size not in recovery_time.GRIDS:
            known = ", ".join(map(str, sorted(recovery_time.GRIDS)))
            raise ConfigError("--ranks", size, f"use some of {known}")


class _Found:
    """Figures of the parts, put together."""

    def __init__(self) -> None:
        self.contenders: dict[str, Metrics] = {}
        self.ratios: dict[str, Spread] = {}
        self.targets: list[Target] = []

    def recovery(self, sizes: Sequence[int], repetitions: int) -> None:
        for size in sizes:
            measured = recovery_time.measure(size, repetitions, _timeout_s(repetitions))
            self._add({name: {f"{m}, {size} ranks": v for m, v in ms.items()} for name, ms in measured.items()})
            self.ratios |= recovery_time.ratios_of(measured, size)
        self.targets += recovery_time.targets_of(self.contenders, self.ratios, sizes)

    def collectives(self, repetitions: int) -> None:
        measured = collectives.measure(repetitions, _timeout_s(repetitions))
        self._add(measured)
        ratios = collectives.ratios_of(measured)
        self.ratios |= ratios
        self.targets += collectives.targets_of(ratios)

    def freed(self, repetitions: int) -> None:
        measured = freed.measure(repetitions)
        self._add(measured)
        self.ratios |= freed.ratios_of(measured)
        self.targets += freed.targets_of(measured)

    def _add(self, measured: dict[str, dict[str, list[float]]]) -> None:
        for name, metrics in measured.items():
            into: dict[str, Any] = self.contenders.setdefault(name, {})
            into |= {metric: spread(values) for metric, values in metrics.items()}


def _timeout_s(repetitions: int) -> float:
    return 60.0 + TIMEOUT_PER_REPETITION_S * repetitions
