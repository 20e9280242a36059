"""The recovery table and other plain text of a report, for terminals and logs."""

from collections.abc import Sequence

from elaswave.events import Phase
from elaswave.report.mttr import Recovery

WORTH_TELLING_S = 0.0005
"""Phases that were shorter are left out of the one line about a recovery."""

HEADER = ("view", "lost", "why", "step", "again", *(str(phase) for phase in Phase), "redo", "MTTR ms")


def milliseconds(seconds: float | None) -> str:
    """Milliseconds without a unit: three digits at least, `-` for None."""
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """A time for people, with its unit."""
    if seconds is None:
        return "-"
    if abs(seconds) < 0.9995:
        return f"{milliseconds(seconds)} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min"


def percent(share: float) -> str:
    """A share in percent, with its sign."""
    return f"{100 * share:.0f} %"


def recovery_rows(recoveries: Sequence[Recovery]) -> list[tuple[str, ...]]:
    """One row per recovery, in the columns of `HEADER`: phases in milliseconds, work done again in percent."""
    return [
        (
            str(one.epoch),
            " ".join(f"rank {rank}" for rank in one.lost_ranks),
            one.cause,
            str(one.step + 1),
            percent(one.recomputed_share),
            *(milliseconds(one.phases_s.get(str(phase))) for phase in Phase),
            milliseconds(one.redo_s),
            milliseconds(one.mttr_s),
        )
        for one in recoveries
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Align columns to the right, those whose index is in `left` to the left; two spaces between."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def recovery_table(recoveries: Sequence[Recovery], width: int | None = None) -> str:
    """The table of all recoveries, or one sentence when there were none.

    Args:
        width: columns there are; a table that is wider is turned, with one column per recovery.
    """
    if not recoveries:
        return "no worker was lost"
    rows = recovery_rows(recoveries)
    wide = table(HEADER, rows, left=(1, 2))
    if width is None or max(map(len, wide.splitlines())) <= width:
        return wide
    first, *others = zip(HEADER, *rows, strict=True)
    return table(first, others, left=(0,))


def recovery_line(one: Recovery) -> str:
    """One recovery in one line."""
    ranks = ", ".join(str(rank) for rank in one.lost_ranks)
    parts = [*one.phases_s.items(), ("redo", one.redo_s or 0.0)]
    told = "  ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in parts if seconds >= WORTH_TELLING_S)
    return f"back in {duration(one.mttr_s)} after the loss of rank {ranks} ({one.cause}): {told} ms"
