"""The shape every bench returns: what each contender did, the ratios between them, and whether the targets were met.

Contenders are measured in turns, so the n-th values of two contenders were taken under the same load. Ratios are
therefore taken repetition by repetition, and their median is what counts.
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    min: float
    max: float
    n: int

    def __str__(self) -> str:
        return f"{_digits(self.median)} [{_digits(self.min)} .. {_digits(self.max)}]"


def spread(values: Iterable[float]) -> Spread:
    """Summarise repetitions.

    Raises:
        ValueError: there are none.
    """
    kept = list(values)
    if not kept:
        raise ValueError("no repetition was measured")
    return Spread(median=median(kept), min=min(kept), max=max(kept), n=len(kept))


def paired_ratios(numerator: Sequence[float | None], denominator: Sequence[float | None]) -> list[float]:
    """Ratios of values that were taken in the same repetition; a repetition that failed on either side is left out."""
    pairs = zip(numerator, denominator, strict=True)
    return [above / below for above, below in pairs if above is not None and below is not None and below > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A promised figure.

    Attributes:
        name: what is promised.
        value: what was measured; None when nothing was.
        goal: what was promised, such as "<= 0.2".
        met: whether it holds.
    """

    name: str
    value: float | None
    goal: str
    met: bool


def at_least(name: str, value: float | None, goal: float) -> Target:
    return Target(name=name, value=value, goal=f">= {goal:g}", met=value is not None and value >= goal)


def at_most(name: str, value: float | None, goal: float) -> Target:
    return Target(name=name, value=value, goal=f"<= {goal:g}", met=value is not None and value <= goal)


def below(name: str, value: float | None, goal: float) -> Target:
    return Target(name=name, value=value, goal=f"< {goal:g}", met=value is not None and value < goal)


Metrics = dict[str, Spread]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one bench measured.

    Attributes:
        bench: its name.
        config: everything the figures depend on.
        contenders: name -> metric -> spread over the repetitions. Metrics carry their unit as a suffix.
        ratios: name -> spread of the ratios of paired repetitions.
        targets: what the project promises about these figures.
        notes: what a reader must know to judge the figures.
    """

    bench: str
    config: Mapping[str, Any]
    contenders: Mapping[str, Metrics]
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()


def ratio_median(result_ratios: Mapping[str, Spread], name: str) -> float | None:
    """Median of a ratio; None when it was not measured."""
    found = result_ratios.get(name)
    return None if found is None else found.median


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def as_json(result: Result, on: Mapping[str, Any]) -> str:
    """One line of JSON.

    Args:
        result: of the bench.
        on: the machine, as `machine()` describes it.
    """
    values = {
        "bench": result.bench,
        "machine": dict(on),
        "config": dict(result.config),
        "contenders": {
            name: {metric: asdict(values) for metric, values in metrics.items()}
            for name, metrics in result.contenders.items()
        },
        "ratios": {name: values.median for name, values in result.ratios.items()},
        "ratio_spreads": {name: asdict(values) for name, values in result.ratios.items()},
        "targets": [asdict(target) for target in result.targets],
        "notes": list(result.notes),
    }
    return json.dumps(_finite(values), allow_nan=False)


def as_table(result: Result) -> RenderableType:
    """Tables for people: figures, ratios, targets."""
    parts: list[RenderableType] = [_figures(result)]
    if result.ratios:
        parts.append(_ratios(result))
    if result.targets:
        parts.append(_targets(result))
    parts += [Text(note) for note in result.notes]
    return Group(*parts)


def _figures(result: Result) -> Table:
    table = Table(title=escape(f"{result.bench}: median [min .. max]"), title_justify="left")
    table.add_column("contender")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("n", justify="right")
    for name, metrics in result.contenders.items():
        for metric, values in metrics.items():
            table.add_row(name, metric, str(values), str(values.n))
        table.add_section()
    return table


def _ratios(result: Result) -> Table:
    table = Table(title="ratios of paired repetitions", title_justify="left")
    table.add_column("ratio")
    table.add_column("value", justify="right")
    for name, values in result.ratios.items():
        table.add_row(name, str(values))
    return table


def _targets(result: Result) -> Table:
    table = Table(title="targets", title_justify="left")
    for column in ("target", "value", "goal", "met"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for target in result.targets:
        value = "-" if target.value is None else _digits(target.value)
        table.add_row(target.name, value, target.goal, "yes" if target.met else "[bold]no[/bold]")
    return table


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
