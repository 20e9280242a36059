"""The matrices of a bench on streams of tasks as one page: rows are tasks learned, columns tasks asked for."""

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;margin:.3em}"
    "td{width:2.8em;height:2em;text-align:center;font-variant-numeric:tabular-nums}figure{display:inline-block;margin:1em}"
    "figcaption{font-weight:600}"
)


def render(streams: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """One page.

    Args:
        streams: stream -> contender -> (tasks, tasks) accuracies from 0 to 1.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>Streams of tasks</title><style>{_STYLE}</style>"]
    parts.append("<p>Accuracy in percent: after the task of the row was learned, on the task of the column.</p>")
    for name, contenders in streams.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += [_figure(contender, matrix) for contender, matrix in contenders.items()]
    return "\n".join(parts) + "\n"


def _figure(name: str, matrix: Sequence[Sequence[float]]) -> str:
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in matrix)
    return f"<figure><figcaption>{escape(name)}</figcaption><table>{rows}</table></figure>"


def _cell(value: float) -> str:
    """The darker, the more accurate."""
    ink = "#fff" if value > 0.6 else "#000"
    return f'<td style="background:hsl(210 60% {100 - 65 * value:.0f}%);color:{ink}">{100 * value:.0f}</td>'
