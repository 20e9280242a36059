"""The charts of a report, as inline SVG that takes its colours from the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from elaswave.events import Phase
from elaswave.report.facts import Membership
from elaswave.report.markup import Markup, el, join, nice_ticks, path, thin
from elaswave.report.mttr import Recovery
from elaswave.report.steps import Step
from elaswave.report.summary import Report
from elaswave.report.text import duration

WIDTH = 960.0
LEFT, RIGHT = 64.0, 16.0
MOST_BARS = 24
"""Recoveries drawn as bars; the slowest, when there are more."""
MOST_TREADS = 400
"""Steps up to which throughput is drawn as a staircase, each step as wide as it lasted."""

SEGMENTS = (*(str(phase) for phase in Phase), "redo")


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def loss_chart(report: Report) -> Markup:
    """Loss by step, faults marked; the reference run lies under it as a broad pale line."""
    own = _losses(report.ledger.steps)
    other = _losses(report.reference.steps) if report.reference else []
    if not own:
        return _empty("no step was committed")
    height, top, bottom = 300.0, 34.0, 34.0
    values = [loss for _, loss in own + other]
    pad = 0.06 * (max(values) - min(values)) or 0.5
    x = Axis(own[0][0], max(own[-1][0], report.target_steps or 0), LEFT, WIDTH - RIGHT)
    y = Axis(min(values) - pad, max(values) + pad, height - bottom, top)
    lines = [
        el("path", d=path([(x(s), y(v)) for s, v in thin(points)]), class_=name, fill="none")
        for name, points in (("reference", other), ("loss", own))
        if points
    ]
    marks = _marks(report.recoveries, x, top, height - bottom)
    return _figure(height, _grid(x, y, lambda v: f"{v:g}", "step"), marks, *lines)


def members_chart(report: Report) -> Markup:
    """A lane per rank: which worker held it, from when to when, and how it ended."""
    history = report.history
    ranks = sorted({member.rank for member in history.members})
    if not ranks:
        return _empty("no worker joined")
    row = 26.0 if len(ranks) <= 16 else max(5.0, 416.0 / len(ranks))
    top, bottom = 26.0, 34.0
    height = top + row * len(ranks) + bottom
    x = _time_axis(report)
    start = history.started_t
    windows = [_window(x, one, start, top, height - bottom) for one in report.recoveries]
    views = [
        el("line", x1=x(v.t - start), x2=x(v.t - start), y1=top - 4, y2=height - bottom, class_="view")
        for v in history.views
    ]
    labels = [
        el("text", f"rank {rank}", x=LEFT - 10, y=top + row * (i + 0.5) + 4, class_="tick end")
        for i, rank in enumerate(ranks)
        if row >= 12 or i % math.ceil(12 / row) == 0
    ]
    generation: dict[int, int] = {}
    lanes = []
    for member in history.members:
        nth = generation[member.rank] = generation.get(member.rank, 0) + 1
        lanes.append(_life(report, member, nth, x, top + row * ranks.index(member.rank), row))
    return _figure(
        height, *windows, *views, _view_labels(report, x, top), *labels, *lanes, _time_ticks(x, height - bottom)
    )


def throughput_chart(report: Report) -> Markup:
    """Tokens per second, step by step, over the same time as the members."""
    points = _treads(report)
    if not points:
        return _empty("fewer than two steps were committed")
    height, top, bottom = 200.0, 14.0, 34.0
    x = _time_axis(report)
    y = Axis(0.0, 1.08 * max(rate for _, rate in points), height - bottom, top)
    drawn = [(x(t), y(rate)) for t, rate in points]
    area = f"{path(drawn)}L{drawn[-1][0]:.1f},{y(0):.1f}L{drawn[0][0]:.1f},{y(0):.1f}Z"
    windows = [_window(x, one, report.history.started_t, top, height - bottom) for one in report.recoveries]
    return _figure(
        height,
        *windows,
        _y_grid(x, y, _short),
        el("path", d=area, class_="area"),
        el("path", d=path(drawn), class_="rate", fill="none"),
        _time_ticks(x, height - bottom),
    )


def mttr_chart(recoveries: Sequence[Recovery]) -> Markup:
    """One bar per recovery, cut into its phases."""
    shown = [one for one in recoveries if one.mttr_s is not None]
    if len(shown) > MOST_BARS:
        shown = sorted(sorted(shown, key=lambda one: -(one.mttr_s or 0))[:MOST_BARS], key=lambda one: one.epoch)
    if not shown:
        return _empty("no recovery came to its end")
    row, top, bottom, left, right = 34.0, 8.0, 34.0, 150.0, 84.0
    height = top + row * len(shown) + bottom
    x = Axis(0.0, max(one.mttr_s or 0.0 for one in shown), left, WIDTH - right)
    ticks = [
        join(
            [
                el("line", x1=x(v), x2=x(v), y1=top, y2=height - bottom, class_="grid"),
                el("text", duration(v) if v else "0", x=x(v), y=height - bottom + 18, class_="tick mid"),
            ]
        )
        for v in nice_ticks(x.low, x.high, 6)
    ]
    return _figure(height, *ticks, *(_bar(one, x, top + row * i, row) for i, one in enumerate(shown)))


def legend() -> Markup:
    """Names and colours of the phases."""
    return el("ul", *(el("li", el("i", class_=f"seg-{name}"), name) for name in SEGMENTS), class_="legend")


# -- pieces -------------------------------------------------------------------------------------------------------


def _bar(one: Recovery, x: Axis, top: float, row: float) -> Markup:
    label = f"{_lost(one, short=True)}, view {one.epoch}"
    pieces = [el("text", label, x=x.start - 12, y=top + row / 2 + 4, class_="tick end")]
    at = 0.0
    for name in SEGMENTS:
        seconds = (one.redo_s or 0.0) if name == "redo" else one.phases_s.get(name, 0.0)
        if seconds > 0:
            title = el("title", f"{name}: {duration(seconds)}")
            width = max(0.5, x(at + seconds) - x(at) - 1)
            pieces.append(
                el("rect", title, x=x(at), y=top + 6, width=width, height=row - 12, rx=2, class_=f"seg-{name}")
            )
            at += seconds
    pieces.append(el("text", duration(one.mttr_s), x=x(at) + 8, y=top + row / 2 + 4, class_="value"))
    return join(pieces)


def _life(report: Report, member: Membership, nth: int, x: Axis, top: float, row: float) -> Markup:
    start = report.history.started_t
    end_t = report.history.ended_t if member.left_t is None else member.left_t
    x0, x1 = x(member.joined_t - start), x(end_t - start)
    gap = min(4.0, row / 5)
    until = f"lost at step {member.left_step}: {member.reason}" if member.lost else member.reason or "to the end"
    title = el("title", f"worker {member.worker_id} (pid {member.pid}), from step {member.joined_step}, {until}")
    kind = "life first" if nth == 1 else "life later"
    bar = el(
        "rect",
        title,
        x=x0,
        y=top + gap,
        width=max(2.0, x1 - x0),
        height=row - 2 * gap,
        rx=min(4.0, row / 4),
        class_=kind,
    )
    pieces = [bar]
    if row >= 20 and x1 - x0 > 130:
        pieces.append(el("text", member.worker_id, x=x0 + 8, y=top + row / 2 + 4, class_="worker"))
    if member.lost:
        pieces.append(_cross(x1, top + row / 2, min(5.0, row / 3)))
    return join(pieces)


def _cross(x: float, y: float, size: float) -> Markup:
    ends = [path([(x - size, y + way * size), (x + size, y - way * size)]) for way in (-1, 1)]
    return el("path", d="".join(ends), class_="cross")


def _marks(recoveries: Sequence[Recovery], x: Axis, top: float, bottom: float) -> Markup:
    """Faults in a chart over steps: one mark for all of a step, named where there is room."""
    by_step: dict[int, list[Recovery]] = {}
    for one in recoveries:
        by_step.setdefault(one.step + 1, []).append(one)
    marks, taken_to = [], x.start
    for step, after in pairwise([*sorted(by_step), None]):
        assert step is not None, "only the end has no step"
        at, label = x(step), "; ".join(_lost(one) for one in by_step[step])
        width = 7.5 * len(label) + 20
        room = (x.end if after is None else x(after) - 6) - at
        left = width > room and at - width >= taken_to
        shown = left or width <= room
        marks.append(_mark(at, top, bottom, label if shown else "", left, by_step[step]))
        taken_to = at + (width if shown and not left else 6)
    return join(marks)


def _mark(x: float, top: float, bottom: float, label: str, left: bool, group: Sequence[Recovery]) -> Markup:
    title = "; ".join(f"{_lost(one)} at step {one.step + 1}, back in {duration(one.mttr_s)}" for one in group)
    return el(
        "g",
        el("title", title),
        el("line", x1=x, x2=x, y1=top, y2=bottom, class_="fault"),
        _cross(x, top - 10, 4.0),
        el("text", label, x=x - 9 if left else x + 9, y=top - 6, class_="tick bad end" if left else "tick bad"),
    )


def _window(x: Axis, one: Recovery, start_t: float, top: float, bottom: float) -> Markup:
    """The time from a fault to the commit after it."""
    if one.fault_t is None:
        return Markup("")
    x0 = x(one.fault_t - start_t)
    x1 = x(one.committed_t - start_t) if one.committed_t is not None else x.end
    title = el("title", f"{_lost(one)}, back in {duration(one.mttr_s)}")
    return el("rect", title, x=x0, y=top, width=max(2.0, x1 - x0), height=bottom - top, class_="window")


def _view_labels(report: Report, x: Axis, top: float) -> Markup:
    """Numbers of the views where there is room for them."""
    pieces, last = [], -100.0
    for view in report.history.views:
        at = x(view.t - report.history.started_t)
        if at - last > 60:
            pieces.append(
                el("text", el("title", view.reason), f"view {view.epoch}", x=at + 3, y=top - 8, class_="tick")
            )
            last = at
    return join(pieces)


def _grid(x: Axis, y: Axis, show: Callable[[float], str], unit: str) -> Markup:
    ticks = [v for v in nice_ticks(x.low, x.high, 8) if v == int(v)]
    bottom = max(y.start, y.end)
    labels = [
        el("text", f"{unit} {v:g}" if i == 0 else f"{v:g}", x=x(v), y=bottom + 20, class_="tick mid")
        for i, v in enumerate(ticks)
    ]
    return join([_y_grid(x, y, show), *labels])


def _y_grid(x: Axis, y: Axis, show: Callable[[float], str]) -> Markup:
    return join(
        [
            join(
                [
                    el("line", x1=x.start, x2=x.end, y1=y(v), y2=y(v), class_="grid"),
                    el("text", show(v), x=x.start - 10, y=y(v) + 4, class_="tick end"),
                ]
            )
            for v in nice_ticks(y.low, y.high, 4)
        ]
    )


def _treads(report: Report) -> list[tuple[float, float]]:
    """Rates over time; in a short run every step keeps its rate for as long as it lasted."""
    start = report.history.started_t
    if len(report.rates) > MOST_TREADS:
        return thin([(rate.t - start, rate.tokens_per_s) for rate in report.rates])
    return [(t - start, rate.tokens_per_s) for rate in report.rates for t in (rate.t - rate.seconds, rate.t)]


def _time_axis(report: Report) -> Axis:
    span_s = max(report.history.ended_t - report.history.started_t, 1e-3)
    return Axis(0.0, span_s, LEFT, WIDTH - RIGHT)


def _time_ticks(x: Axis, y: float) -> Markup:
    unit, size = ("min", 60.0) if x.high > 300 else ("s", 1.0)
    ticks = nice_ticks(x.low / size, x.high / size, 8)
    return join([el("text", f"{v:g} {unit}", x=x(v * size), y=y + 20, class_="tick mid") for v in ticks])


def _losses(steps: Sequence[Step]) -> list[tuple[float, float]]:
    return [(float(step.step), step.loss) for step in steps if step.loss is not None and math.isfinite(step.loss)]


def _lost(one: Recovery, short: bool = False) -> str:
    ranks = ", ".join(str(rank) for rank in one.lost_ranks)
    name = f"rank{'s' * (len(one.lost_ranks) > 1)} {ranks}"
    return name if short else f"{name}: {one.cause}"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _figure(height: float, *children: str) -> Markup:
    return el("svg", *children, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img")


def _empty(why: str) -> Markup:
    return el("p", why, class_="empty")
