"""Where a run stands, folded from its events one by one, and the lines worth telling on the way."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from elaswave.events import Kind
from elaswave.report.values import mapping

RATE_STEPS = 8
"""Most recent steps that the shown rate is measured over."""


class Tone(StrEnum):
    """How a line is to be shown."""

    CALM = "calm"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One remark, `t` seconds after the first event."""

    t: float
    text: str
    tone: Tone = Tone.CALM

    def __str__(self) -> str:
        return f"[{self.t:7.2f} s] {self.text}"


@dataclass(slots=True, kw_only=True)
class Progress:
    """The newest state of a run, whichever process told it.

    Attributes:
        total_steps: of the whole run, 0 when unknown.
        every_s: least time between two lines about steps, in the events' own time.
        step: newest committed step.
        ranks: of the newest view.
    """

    total_steps: int = 0
    every_s: float = 1.0
    started_t: float | None = None
    now_t: float = 0.0
    step: int = 0
    loss: float | None = None
    epoch: int = 0
    ranks: tuple[int, ...] = ()
    paused: bool = False
    _rates: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_STEPS + 1))
    _told_t: float = float("-inf")
    _dead: set[str] = field(default_factory=set)

    def observe(self, event: Mapping[str, Any]) -> Line | None:
        """Take in one event; returns a line when it is worth one. Events that make no sense are passed over."""
        try:
            t = float(event["t"])
            tell = _TELLERS.get(event["kind"])
            self.started_t = t if self.started_t is None else self.started_t
            self.now_t = max(self.now_t, t)
            told = tell(self, event) if tell else None
        except (KeyError, TypeError, ValueError, IndexError):
            return None
        if told is None:
            return None
        text, tone = told
        return Line(t=max(0.0, t - self.started_t), text=text, tone=tone)

    @property
    def elapsed_s(self) -> float:
        """From the first event to the newest."""
        return max(0.0, self.now_t - self.started_t) if self.started_t is not None else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Over the last few steps of the current view, None before there are two or when nobody tells."""
        if len(self._rates) < 2:
            return None
        seconds, tokens = self._rates[-1][0] - self._rates[0][0], sum(tokens for _, tokens in list(self._rates)[1:])
        return tokens / seconds if seconds > 0 and tokens else None

    def summary(self) -> str:
        """One line: step, loss, rate, members, view."""
        of = f"/{self.total_steps}" if self.total_steps else ""
        parts = [f"step {self.step}{of}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if (rate := self.tokens_per_s) is not None:
            parts.append(f"{rate:,.0f} tokens/s")
        if self.ranks:
            parts.append(f"{len(self.ranks)} worker{'s' * (len(self.ranks) != 1)}")
        parts.append(f"view {self.epoch}")
        return "  ".join(parts)

    def _commit(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        step, t = int(e["step"]), float(e["t"])
        if step <= self.step:
            return None
        if not self.ranks:  # a worker sees its own events only, and no views among them
            self.epoch = int(e.get("epoch", 0))
        self.step = step
        self.loss = None if e.get("loss") is None else float(e["loss"])
        self._rates.append((t, int(e.get("tokens") or 0)))
        if step != self.total_steps and t - self._told_t < self.every_s:
            return None
        self._told_t = t
        return self.summary(), Tone.CALM

    def _view(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        if int(e["epoch"]) <= self.epoch or (self.total_steps and self.step >= self.total_steps):
            return None  # known, or only the members leaving after the last step
        before = self.ranks
        self.epoch = int(e["epoch"])
        self.ranks = tuple(int(member[0]) for member in e["members"])
        self.paused = bool(e.get("paused"))
        self._rates.clear()
        state = ", paused" if self.paused else ""
        workers = f"{len(self.ranks)} worker{'s' * (len(self.ranks) != 1)}{state}"
        bad = self.paused or len(self.ranks) < len(before)
        return f"view {self.epoch}: {workers}; {e.get('reason', '')}", Tone.BAD if bad else Tone.CALM

    def _run(self, e: Mapping[str, Any]) -> tuple[str, Tone]:
        steps = mapping(mapping(e.get("config")).get("training")).get("steps")
        self.total_steps = self.total_steps or int(steps or 0)
        of = f", {self.total_steps} steps" if self.total_steps else ""
        return f"run {e.get('name', '')}: {e.get('workers', '?')} workers{of}", Tone.CALM

    def _joined(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        if self.step == 0:  # the first view says it for all
            return None
        step = max(self.step, int(e.get("step") or 0))  # a newcomer has not taken part in any step yet
        return f"rank {e['rank']} joined after step {step} (pid {e.get('pid', '?')})", Tone.GOOD

    def _left(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        if self.total_steps and self.step >= self.total_steps:
            return None
        return f"rank {e['rank']} left at step {e.get('step', self.step)}: {e.get('reason', '')}", Tone.CALM

    def _fault(self, e: Mapping[str, Any]) -> tuple[str, Tone]:
        where = f" in {e['phase']}" if e.get("phase") else ""
        pid = f" (pid {e['target_pid']})" if e.get("target_pid") else ""
        return f"fault: {e['what']} rank {e.get('target_rank')}{pid} at step {e.get('step')}{where}", Tone.BAD

    def _death(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        if e["worker_id"] in self._dead or (self.total_steps and self.step >= self.total_steps):
            return None
        self._dead.add(e["worker_id"])
        who = "a worker" if e.get("rank") is None else f"rank {e['rank']}"
        return f"{who} died: {e.get('evidence', '')}", Tone.BAD

    def _spare(self, e: Mapping[str, Any]) -> tuple[str, Tone] | None:
        return (f"spare activated (pid {e.get('pid')})", Tone.CALM) if e.get("what") == "activated" else None

    def _checkpoint(self, e: Mapping[str, Any]) -> tuple[str, Tone]:
        return f"checkpoint of step {e.get('step')}: {e.get('path', '')}", Tone.CALM

    def _error(self, e: Mapping[str, Any]) -> tuple[str, Tone]:
        who = "" if e.get("rank") is None else f"rank {e['rank']}: "
        return f"error: {who}{e.get('message', '')}", Tone.BAD


_TELLERS: dict[str, Callable[[Progress, Mapping[str, Any]], tuple[str, Tone] | None]] = {
    Kind.RUN: Progress._run,
    Kind.STEP_COMMITTED: Progress._commit,
    Kind.VIEW: Progress._view,
    Kind.JOINED: Progress._joined,
    Kind.LEFT: Progress._left,
    Kind.FAULT: Progress._fault,
    Kind.DEATH: Progress._death,
    Kind.SPARE: Progress._spare,
    Kind.CHECKPOINT: Progress._checkpoint,
    Kind.ERROR: Progress._error,
}
