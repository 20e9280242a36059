"""The report as one page that needs nothing else: text, charts and style in a single file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from elaswave.events import Phase
from elaswave.report.charts import legend, loss_chart, members_chart, mttr_chart, throughput_chart
from elaswave.report.markup import Markup, el, join
from elaswave.report.mttr import Healing, Recovery
from elaswave.report.steps import rate_around
from elaswave.report.style import CSS
from elaswave.report.summary import Report
from elaswave.report.text import duration, milliseconds, percent
from elaswave.report.toml import config_toml, faults_toml

MOST_ROWS = 200
"""Rows of a table on the page; `report.json` has all."""

_FAULT_SOURCE = {
    "fault": "",
    "death": "from the first evidence of the death",
    "phase": "from the survivor's first phase",
}


def page(report: Report) -> str:
    """The whole page as HTML text."""
    title = f"{report.history.name or 'run'}: ElasWave report"
    head = el(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        el("title", title),
        el("style", Markup(CSS)),
    )
    parts = [_header(report), _tiles(report), _loss(report), _members(report)]
    if report.recoveries:
        parts.append(_recoveries(report))
    if report.healings:
        parts.append(_healings(report))
    if report.changes:
        parts.append(_changes(report))
    parts += [_evidence(report), _reproduce(report)]
    return f"<!doctype html>\n{el('html', head, el('body', el('main', *parts, _footer(report))), lang='en')}\n"


# -- top ----------------------------------------------------------------------------------------------------------


def _header(report: Report) -> Markup:
    started = datetime.fromtimestamp(report.history.started_t, UTC).strftime("%d %B %Y, %H:%M UTC")
    wall = duration(report.history.ended_t - report.history.started_t)
    eyebrow = el(
        "p", "ElasWave  ·  ", el("b", report.history.name or "run"), f"  ·  {started}  ·  {wall}", class_="eyebrow"
    )
    pieces = [eyebrow, el("h1", _headline(report)), el("p", _lead(report), class_="lead")]
    if report.failures:
        pieces.append(el("ul", *(el("li", failure) for failure in report.failures), class_="failures"))
    return el("header", *pieces)


def _headline(report: Report) -> str:
    if report.failures:
        return "Not as promised."
    if not report.recoveries:
        return "A quiet run."
    if report.comparison is not None:
        return "Wounded, and equal to the last bit."
    if report.ledger.unconfirmed_samples:
        return "Workers died. The run went on."
    return "Workers died. Nothing was lost."


def _lead(report: Report) -> str:
    died = sum(len(one.lost_ranks) for one in report.recoveries)
    first = f"{report.last_step:,} steps on {_workers(report)} workers. "
    if not died:
        return first + "No worker was lost."
    middle = f"{died} worker{'s' * (died != 1)} died"
    if report.mttrs_s:
        middle += f", and the survivors committed their next step {duration(median(report.mttrs_s))} after the fault"
    middle += " (median)." if len(report.mttrs_s) > 1 else "."
    equal = report.comparison
    end = f" Against the unharmed run: {equal.reason}." if equal is not None and equal.verdict == "equal" else ""
    return first + middle + end


def _tiles(report: Report) -> Markup:
    accounts, mttrs_s = report.ledger, report.mttrs_s
    lost = accounts.samples_lost
    tiles = []
    if mttrs_s:
        about = (
            f"worst {duration(max(mttrs_s))} of {len(mttrs_s)}" if len(mttrs_s) > 1 else "fault to next committed step"
        )
        tiles.append(_tile("MTTR" + (", median" if len(mttrs_s) > 1 else ""), duration(median(mttrs_s)), about))
    twice = f"{accounts.samples:,} trained, {accounts.duplicate_samples} twice"
    tiles.append(_tile("Samples lost", f"{lost:,}", twice, "bad" if lost or accounts.duplicate_samples else "good"))
    target = f"of {report.target_steps:,}" if report.target_steps else "no target known"
    tiles.append(_tile("Steps committed", f"{report.last_step:,}", target, "" if report.complete else "bad"))
    if (found := report.comparison) is not None:
        good = "good" if found.verdict == "equal" else "bad"
        about = f"of {found.common_steps:,} steps, to the unharmed run"
        tiles.append(_tile("Bitwise equal", f"{found.equal_steps:,}", about, good))
    elif accounts.steps:
        agree = len(accounts.steps) - len(accounts.disagreements)
        good = "bad" if accounts.disagreements else "good"
        tiles.append(_tile("Ranks agree on", f"{agree:,}", f"of {len(accounts.steps):,} losses and digests", good))
    if report.rates:
        tiles.append(
            _tile("Throughput", f"{median(r.tokens_per_s for r in report.rates):,.0f}", "tokens/s, median step")
        )
    if accounts.steps and accounts.steps[-1].loss is not None:
        tiles.append(_tile("Final loss", f"{accounts.steps[-1].loss:.4f}", f"from {_first_loss(report)}"))
    return el("dl", *tiles, class_="tiles")


def _tile(name: str, value: str, about: str, tone: str = "") -> Markup:
    return el("div", el("dt", name), el("dd", value), el("p", about), class_=f"tile {tone}".strip())


# -- charts -------------------------------------------------------------------------------------------------------


def _loss(report: Report) -> Markup:
    keys = [el("li", el("i", class_="k-own"), "this run")]
    if report.reference is not None:
        keys.append(el("li", el("i", class_="k-ref"), "unharmed run"))
    note = "Every step of the whole global batch; dashed lines are losses of workers."
    return _section("Loss", note, el("ul", *keys, class_="legend"), loss_chart(report))


def _members(report: Report) -> Markup:
    keys = el(
        "ul",
        el("li", el("i", class_="k-own"), "first worker of a rank"),
        el("li", el("i", class_="k-later"), "replacement"),
        el("li", el("i", class_="k-window"), "from the fault to the next committed step"),
        class_="legend",
    )
    note = "A rank is a slot; the worker is the process that holds it."
    return _section(
        "Members and throughput",
        note,
        keys,
        members_chart(report),
        el("h3", "Tokens per second, step by step"),
        throughput_chart(report),
    )


def _recoveries(report: Report) -> Markup:
    note = (
        "From the fault to the slowest survivor's next committed step. The phases are that survivor's own, and add "
        "up; redo is the rest of the interrupted step. Recomputed is work that is done twice: what lost workers were "
        "to do counts in full, as nobody knows how far they came."
    )
    header = ["view", "lost", "cause", "step", *(str(phase) for phase in Phase), "redo", "MTTR", "stall"]
    rows = [_recovery_cells(one) for one in report.recoveries[:MOST_ROWS]]
    more = ["tokens/s before", "after", "recomputed", "moved", "plan"]
    plans = [_plan_cells(report, one) for one in report.recoveries[:MOST_ROWS]]
    return _section(
        "Recoveries",
        note,
        legend(),
        mttr_chart(report.recoveries),
        el("h3", "In milliseconds"),
        _table(header, rows, left=(1, 2), strong=(len(header) - 2,)),
        el("h3", "What it took"),
        _table(["view", "time of fault", *more], plans, left=(1, 6)),
    )


def _recovery_cells(one: Recovery) -> list[str]:
    ranks = ", ".join(str(rank) for rank in one.lost_ranks)
    return [
        str(one.epoch),
        f"rank {ranks}",
        one.cause,
        str(one.step + 1),
        *(milliseconds(one.phases_s.get(str(phase))) for phase in Phase),
        milliseconds(one.redo_s),
        milliseconds(one.mttr_s),
        milliseconds(one.stall_s),
    ]


def _plan_cells(report: Report, one: Recovery) -> list[str]:
    before, after = rate_around(report.rates, one.epoch)
    source = _FAULT_SOURCE.get(one.fault_time_source, "unknown") or "when it was done"
    plan = one.plan + (f" (overtaken by view {one.superseded_by})" if one.superseded_by is not None else "")
    rates = ["-" if rate is None else f"{rate:,.0f}" for rate in (before, after)]
    return [str(one.epoch), source, *rates, _again(one), _bytes(one.bytes_moved), plan]


def _again(one: Recovery | Healing) -> str:
    return f"{percent(one.recomputed_share)} of a step, in {one.recomputed} micro-batches"


def _healings(report: Report) -> Markup:
    rows = [
        [
            f"{one.t - report.history.started_t:.2f} s",
            str(one.step + 1),
            one.cause,
            milliseconds(one.stall_s),
            _again(one),
            "; ".join(one.found) or "-",
        ]
        for one in report.healings[:MOST_ROWS]
    ]
    header = ["time", "from step", "found", "stall ms", "recomputed", "damaged"]
    note = "State that was not what had been announced; the same members brought it back from good copies."
    return _section("Damage that was healed", note, _table(header, rows, left=(2, 5)))


def _changes(report: Report) -> Markup:
    rows = [
        [
            str(one.epoch),
            one.cause,
            str(one.step + 1),
            str(one.members),
            milliseconds(one.stall_s),
            _bytes(one.bytes_moved),
            one.plan,
        ]
        for one in report.changes[:MOST_ROWS]
    ]
    header = ["view", "change", "from step", "members", "stall ms", "moved", "plan"]
    note = "Joins and planned leaves: made between two steps, nobody is interrupted."
    return _section("Planned changes", note, _table(header, rows, left=(1, 6)))


# -- evidence -----------------------------------------------------------------------------------------------------


def _evidence(report: Report) -> Markup:
    history, accounts = report.history, report.ledger
    last = accounts.steps[-1] if accounts.steps else None
    rows = [
        ["State digest after the last step", last.digest or "not told" if last else "-"],
        [
            "Loss of the last step, exact",
            "-" if last is None or last.loss is None else f"{last.loss!r} = {last.loss.hex()}",
        ],
        ["Samples trained, each once", f"{accounts.samples:,}"],
        ["Samples missing / trained twice", f"{accounts.samples_lost:,} / {accounts.duplicate_samples:,}"],
        ["Samples only the step's own vote vouches for", f"{accounts.unconfirmed_samples:,}"],
        ["Steps tried again after a fault in a commit", f"{sum(step.attempts > 1 for step in accounts.steps):,}"],
        ["Steps about which ranks disagree", ", ".join(map(str, accounts.disagreements[:10])) or "none"],
        ["Views", f"{len(history.views)}"],
        ["Events that could not be read", f"{history.skipped}"],
    ]
    if report.comparison is not None:
        rows.insert(2, ["Against the unharmed run", report.comparison.reason])
        rows[3:3] = [[f"Differs: {d.what}", f"{d.a} / {d.b}"] for d in report.comparison.differences]
    members = [
        [
            str(member.rank),
            member.worker_id,
            str(member.pid or "-"),
            str(member.joined_step),
            "-" if member.left_step is None else str(member.left_step),
            ("lost: " if member.lost else "") + (member.reason or "stayed to the end"),
        ]
        for member in history.members[:MOST_ROWS]
    ]
    notes = [
        [f"{n.t - history.started_t:.2f} s", n.kind, "-" if n.rank is None else str(n.rank), n.text]
        for n in history.notes
    ]
    views = [
        [
            f"{v.t - history.started_t:.3f} s",
            str(v.epoch),
            str(len(v.members)),
            v.reason + ("; paused" if v.paused else ""),
        ]
        for v in history.views[:MOST_ROWS]
    ]
    pieces = [
        _table(["", ""], rows, left=(0, 1)),
        _fold(
            "Workers",
            _table(["rank", "worker", "pid", "joined after step", "left after step", ""], members, left=(1, 5)),
        ),
        _fold("Views", _table(["time", "view", "members", "reason"], views, left=(3,))),
    ]
    if notes:
        pieces.append(
            _fold(
                "Errors, damage and checkpoints", _table(["time", "kind", "rank", ""], notes[:MOST_ROWS], left=(1, 3))
            )
        )
    return _section("Evidence", "What the events prove, counted from every rank's own commits.", *pieces)


def _reproduce(report: Report) -> Markup:
    faults = report.history.faults
    command = report.history.command or (
        f"elaswave launch run.toml --workers {_workers(report)}" + (" --faults faults.toml" if faults else "")
    )
    pieces = [el("pre", command)]
    if report.history.config:
        pieces.append(_fold("run.toml", el("pre", config_toml(report.history.config))))
    if faults:
        pieces.append(_fold("faults.toml", el("pre", faults_toml(faults))))
    return _section("Run it again", "The same settings, and the same harm.", *pieces)


def _footer(report: Report) -> Markup:
    return el("footer", "Made from the events in this folder. ", el("code", "trace.json"), " opens in ui.perfetto.dev.")


# -- pieces -------------------------------------------------------------------------------------------------------


def _section(title: str, note: str, *children: str) -> Markup:
    return el("section", el("h2", title), el("p", note, class_="note"), *children)


def _fold(title: str, *children: str) -> Markup:
    return el("details", el("summary", title), *children)


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (), strong: Sequence[int] = ()
) -> Markup:
    def classes(i: int, body: bool) -> str | None:
        names = (
            ["l"] * (i in left)
            + ["strong"] * (body and i in strong)
            + ["wrap"] * (body and i == len(header) - 1 and i in left)
        )
        return " ".join(names) or None

    head = (
        [el("tr", *(el("th", name, class_=classes(i, False)) for i, name in enumerate(header)))] if any(header) else []
    )
    body = [el("tr", *(el("td", cell, class_=classes(i, True)) for i, cell in enumerate(row))) for row in rows]
    return el("div", el("table", join(head), join(body)), class_="scroll")


def _bytes(count: int) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _workers(report: Report) -> int:
    views = [len(view.members) for view in report.history.views if view.members]
    return views[0] if views else len({member.rank for member in report.history.members})


def _first_loss(report: Report) -> str:
    first = report.ledger.steps[0].loss
    return "-" if first is None else f"{first:.4f}"
