"""`elaswave plan CONFIG --lose RANKS`: what the job would do without some workers, as a picture; starts nothing."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elaswave import config as settings
from elaswave.cli.forecast import Forecast, Travel, forecast, profile_of, travel, view_of
from elaswave.config import Config
from elaswave.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

WIDTH = 160
REPLICAS_SHOWN = 12
"""A stage of more workers than that is summed up."""
LEGEND = "rank: micro-batches per step, and the share of the step in which it computes\n"
LEVELS = "▁▂▃▄▅▆▇█"

EPILOG = """\
Every setting of the config can be given on the command line:
  elaswave plan configs/train/gpt_tiny.toml --lose 3 --parallelism.stages 2 --dvfs.backend simulated

Times come from a simulation of the pipeline in which messages take no time. They are relative: how long a layer takes
on a device is measured by a job alone."""


def run(argv: Sequence[str]) -> int:
    """Print the plan before and after; returns 0.

    Raises:
        ConfigError: a setting or an argument is wrong.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    config = settings.load(arguments.config, overrides)
    workers, lost = _checked(config, arguments.workers, arguments.lose)
    per_node = _positive("--per-node", arguments.per_node, config.parallelism.stages)
    profile = profile_of(config)
    before = forecast(config, profile, view_of(range(workers), per_node, 1))
    shown = [*_side("before" if lost else "plan", before, workers, frozenset())]
    if lost:
        left = view_of(sorted(set(range(workers)) - lost), per_node, 2)
        after = forecast(config, profile, left, before.view)
        shown += [
            *_side("after", after, workers, lost),
            *_facts(config, before, after, travel(config, profile, before, after)),
        ]
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for part in [LEGEND, *shown]:
        console.print(part, highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elaswave plan",
        description="Show what the job would do without some of its workers. Nothing is started.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file, such as configs/train/gpt_tiny.toml")
    parser.add_argument("--lose", type=int, nargs="+", default=[], metavar="RANK", help="workers that are lost")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="of the whole job (default: two whole pipelines, or as many as it takes)",
    )
    parser.add_argument(
        "--per-node", type=int, metavar="K", help="workers of a node, which may fail as one (default: one pipeline)"
    )
    return parser


def _positive(key: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise ConfigError(key, value, "give at least 1")
    return default if value is None else value


def _checked(config: Config, workers: int | None, lose: Sequence[int]) -> tuple[int, frozenset[int]]:
    """How many workers there are, and which of them are lost."""
    stages = config.parallelism.stages
    pipelines = max(2, math.ceil((max(lose, default=0) + 1) / stages))
    count = _positive("--workers", workers, stages * pipelines)
    for rank in lose:
        if not 0 <= rank < count:
            raise ConfigError("--lose", rank, f"there is no such rank; use some of 0 .. {count - 1}, or more --workers")
    if len(set(lose)) == count:
        raise ConfigError("--lose", tuple(sorted(set(lose))), f"nobody of {count} workers is left; name fewer ranks")
    return count, frozenset(lose)


def _side(title: str, side: Forecast, workers: int, lost: frozenset[int]) -> "list[RenderableType]":
    from rich.text import Text

    parts: list[RenderableType] = [_picture(title, side, workers, lost)]
    parts.append(Text(side.plan.reason))
    if side.clocks is not None:
        parts.append(Text(f"clocks, as of a simulated device: {side.clocks.reason}"))
    return [*parts, Text()]


def _picture(title: str, side: Forecast, workers: int, lost: frozenset[int]) -> "Table":
    """Stages down, replicas across; each worker with its micro-batches."""
    from rich.table import Table
    from rich.text import Text

    plan, num_stages = side.plan, len(side.plan.stages)
    replicas = math.ceil(workers / num_stages)
    table = Table(title=f"{title}: {len(plan.worker_ids)} workers", title_justify="left", show_lines=True)
    table.add_column("stage", justify="right")
    table.add_column("layers")
    summed = replicas > REPLICAS_SHOWN
    for replica in range(1 if summed else replicas):
        table.add_column("workers" if summed else f"pipeline {replica}")
    index = {member.rank: number for number, member in enumerate(side.view.members)}
    for stage, members in enumerate(plan.stages):
        ranks = range(stage, workers, num_stages)
        usual = Counter(plan.layers[member] for member in members).most_common(1)
        layers = usual[0][0] if usual else ()
        cells = (
            [_sum(side, members, lost.intersection(ranks))]
            if summed
            else [_lost(rank) if rank in lost else _cell(side, rank, index[rank], layers) for rank in ranks]
        )
        table.add_row(str(stage), _spans(layers), *cells, *[Text()] * (len(table.columns) - 2 - len(cells)))
    return table


def _cell(side: Forecast, rank: int, member: int, usual: tuple[int, ...]) -> "Text":
    """One worker; with its layers where they are not those of most of its stage."""
    from rich.text import Text

    busy = side.busy[member]
    level = LEVELS[min(int(busy * len(LEVELS)), len(LEVELS) - 1)]
    told = f"{rank}: {side.counts[member]} {level} {100 * busy:.0f} %"
    layers = side.plan.layers[member]
    own = "" if layers == usual else f"\nlayers {_spans(layers)}"
    clock = "" if side.clocks is None else f"\n{side.clocks.mhz[member]} MHz"
    return Text(told + own + clock)


def _lost(rank: int) -> "Text":
    from rich.text import Text

    return Text(f"{rank}: lost", style="red")


def _sum(side: Forecast, members: Sequence[int], lost: frozenset[int]) -> "Text":
    """A stage of many workers in one line."""
    from rich.text import Text

    if not members:
        return Text(f"none ({len(lost)} lost)", style="red")
    counts = [side.counts[member] for member in members]
    busy = [100 * side.busy[member] for member in members]
    told = f"{len(members)} workers: {_range(counts)} each, {_range([round(value) for value in busy])} %"
    if side.clocks is not None:
        told += f", {_range([side.clocks.mhz[member] for member in members])} MHz"
    return Text(told + (f" ({len(lost)} lost)" if lost else ""))


def _facts(config: Config, before: Forecast, after: Forecast, moved: Travel) -> "list[RenderableType]":
    """How fast the job is afterwards, and what has to travel."""
    from rich.text import Text

    left, all_of_them = len(after.view.members), len(before.view.members)
    speed, bound = before.step / after.step, left / all_of_them
    told = [
        f"throughput: {100 * speed:.1f} % of before; {left} of {all_of_them} workers could do {100 * bound:.1f} %: "
        f"{100 * speed / bound:.1f} % of the bound"
    ]
    if moved.lost:
        ranks = ", ".join(map(str, moved.lost))
        told.append(
            f"lost: the state of rank {ranks} with all its copies (snapshot.copies = {config.snapshot.copies}); "
            "the job goes back to its last checkpoint"
        )
    else:
        told.append(
            f"to move: {_bytes(moved.state_bytes)} of optimizer state, behind the training, "
            f"and {_bytes(moved.weight_bytes)} of weights"
        )
    if left < config.elasticity.min_workers:
        told.append(f"paused: elasticity.min_workers = {config.elasticity.min_workers}; the job waits for workers")
    return [Text(line) for line in told]


def _spans(layers: Sequence[int]) -> str:
    """Layers as people write them: `0-3, 8`."""
    firsts = [layer for layer in layers if layer - 1 not in layers]
    lasts = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(_range(pair) for pair in zip(firsts, lasts, strict=True)) or "none"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
