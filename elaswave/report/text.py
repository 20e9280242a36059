"""The recovery table and other plain text of a report, for terminals and logs."""

from collections.abc import Sequence

from elaswave.events import Phase
from elaswave.report.mttr import Recovery

HEADER = ("view", "lost", "why", "step", *(str(phase) for phase in Phase), "redo", "MTTR ms")


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


def recovery_rows(recoveries: Sequence[Recovery]) -> list[tuple[str, ...]]:
    """One row per recovery, in the columns of `HEADER`; phases in milliseconds."""
    return [
        (
            str(one.epoch),
            " ".join(f"rank {rank}" for rank in one.lost_ranks),
            one.cause,
            str(one.step + 1),
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


def recovery_table(recoveries: Sequence[Recovery]) -> str:
    """The table of all recoveries, or one sentence when there were none."""
    if not recoveries:
        return "no worker was lost"
    return table(HEADER, recovery_rows(recoveries), left=(1, 2))


def recovery_line(one: Recovery) -> str:
    """One recovery in one line."""
    ranks = ", ".join(str(rank) for rank in one.lost_ranks)
    phases = "  ".join(f"{name} {milliseconds(seconds)}" for name, seconds in one.phases_s.items() if seconds)
    return (
        f"back in {duration(one.mttr_s)} after the loss of rank {ranks} ({one.cause}): "
        f"{phases}  redo {milliseconds(one.redo_s)} ms"
    )
