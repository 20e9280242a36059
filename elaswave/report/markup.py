"""Builds HTML and SVG in which everything is escaped unless it was built here too."""

import html
import math
from collections.abc import Sequence


class Markup(str):
    """Text that is markup already; plain `str` is escaped wherever it is put."""

    __slots__ = ()


def el(name: str, *children: str, **attributes: object) -> Markup:
    """An element. `class_` stands for class, and `_` for `-` in attribute names; None leaves an attribute out."""
    shown = "".join(
        f' {_attribute(key)}="{html.escape(_value(value))}"' for key, value in attributes.items() if value is not None
    )
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Sequence[str], between: str = "") -> Markup:
    """Several pieces as one, plain text escaped."""
    return Markup(between.join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover a range from the inside; the lowest alone when it is empty."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = 1200) -> list[tuple[float, float]]:
    """At most `most` points that still show every peak: the lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data through points."""
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) if points else ""


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
