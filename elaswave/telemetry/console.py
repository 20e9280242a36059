"""Shows a run while it goes on, from outside: a calm live display on a terminal, plain lines elsewhere."""

from collections import deque
from typing import Any, Protocol, TextIO

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elaswave.events import Kind, Phase
from elaswave.report.history import history_build
from elaswave.report.mttr import Recovery, recoveries
from elaswave.report.text import duration, recovery_line, recovery_table
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.progress import Line, Progress, Tone

RECENT_EVENTS = 20_000
"""Events kept to measure a recovery while the run goes on; the final table is made from all of them."""

PATIENCE_STEPS = 3
"""Steps after which a recovery that some survivor never reported the end of is no longer waited for."""

_STYLES = {Tone.CALM: "dim", Tone.GOOD: "green", Tone.BAD: "yellow"}
_PHASES = frozenset(str(phase) for phase in Phase)


class Source(Protocol):
    """Where events come from; a `Follower`."""

    def poll(self) -> list[dict[str, Any]]: ...


class Console:
    """Progress of one run.

    Args:
        follower: source of events.
        out: where to write; a live display is used when it is a terminal.
        total_steps: of the whole run, 0 when unknown.
    """

    def __init__(self, follower: Source, out: TextIO, total_steps: int = 0) -> None:
        self._follower = follower
        self._out = out
        self._live: Live | None = None
        self._shown: object = None
        self.progress = Progress(total_steps=total_steps)
        self.last_recovery: Recovery | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_EVENTS)
        self._open: set[int] = set()
        if out.isatty():
            self._live = Live(console=Terminal(file=out), auto_refresh=False, transient=True)
            self._live.start()

    def tick(self) -> list[dict[str, Any]]:
        """Take in what is new and show it; call it a few times a second. Returns the new events."""
        events = self._follower.poll()
        for event in events:
            self._take(event)
        if self._live is not None and self._state() != self._shown:
            self._shown = self._state()
            self._live.update(self._display(), refresh=True)
        return events

    def close(self) -> None:
        """Give the terminal back; safe to call at any time."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finish(self, *, table: bool = True) -> None:
        """Show what came last, and the table of recoveries unless it is shown elsewhere."""
        while self.tick():
            pass
        self.close()
        self._out.write(f"{self.progress.summary()}\n")
        if table:
            self._out.write(f"\n{recovery_table(self._all_recoveries(), self._width())}\n")
        self._out.flush()

    def _width(self) -> int | None:
        """Columns of the terminal, None for anything else."""
        return Terminal(file=self._out).width if self._out.isatty() else None

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("kind")
        if kind != Kind.SPAN or event.get("name") in _PHASES:
            self._recent.append(event)
        if kind == Kind.RECOVERY and event.get("lost") and isinstance(event.get("epoch"), int):
            self._open.add(event["epoch"])
        line = self.progress.observe(event)
        if line is not None and not (self._live and kind == Kind.STEP_COMMITTED):
            self._say(line)
        if kind == Kind.STEP_COMMITTED and self._open:
            self._close_recoveries()

    def _close_recoveries(self) -> None:
        """Tell of every recovery whose slowest survivor has now committed a step."""
        for one in recoveries(history_build(self._recent)):
            if one.epoch not in self._open:
                continue
            if one.mttr_s is None and self.progress.step <= one.step + PATIENCE_STEPS:
                continue
            self._open.discard(one.epoch)
            if one.mttr_s is not None:
                self.last_recovery = one
                self._say(Line(t=self.progress.elapsed_s, text=recovery_line(one), tone=Tone.GOOD))

    def _all_recoveries(self) -> tuple[Recovery, ...]:
        if isinstance(self._follower, Follower):
            return recoveries(history_build(Follower(self._follower.run_folder).drain()))
        return recoveries(history_build(self._recent))

    def _say(self, line: Line) -> None:
        if self._live is not None:
            self._live.console.print(Text(str(line), style=_STYLES[line.tone]), soft_wrap=True)
            return
        self._out.write(f"{line}\n")
        self._out.flush()

    def _state(self) -> object:
        """All that the live display depends on."""
        now = self.progress
        return now.step, now.loss, now.ranks, now.epoch, now.paused, self.last_recovery

    def _display(self) -> Group:
        now = self.progress
        if now.epoch == 0:
            return Group(Text("starting: the workers import torch and find each other ...", style="dim"))
        bar = Table.grid(padding=(0, 2))
        total = max(now.total_steps, now.step, 1)
        bar.add_row(
            Text(f"step {now.step}/{now.total_steps or '?'}", style="bold"),
            ProgressBar(total=total, completed=now.step, width=40),
            Text("loss -" if now.loss is None else f"loss {now.loss:.4f}"),
            Text("" if now.tokens_per_s is None else f"{now.tokens_per_s:,.0f} tokens/s"),
        )
        state = Text(f"{len(now.ranks)} workers  view {now.epoch}", style="dim")
        if now.paused:
            state.append("  paused: waiting for workers", style="yellow")
        if (last := self.last_recovery) is not None:
            ranks = ", ".join(str(rank) for rank in last.lost_ranks)
            state.append(f"  last recovery: rank {ranks} ({last.cause}), {duration(last.mttr_s)}", style="green")
        return Group(bar, state)
