"""`report.json`: everything a run proves, as plain values for machines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from elaswave.events import Phase
from elaswave.report.compare import Comparison, compare
from elaswave.report.facts import History
from elaswave.report.mttr import Change, Healing, Recovery, changes, healings, recoveries
from elaswave.report.steps import Ledger, Rate, ledger, median_rate_by_epoch, rate_around, rates

SCHEMA = 1
"""Version of `report.json`; raised when a key changes its meaning."""


MOST_ERRORS = 3
"""Last errors of a run that did not come to its end that are told with its failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the table, `report.json` and the page are made of."""

    history: History
    ledger: Ledger
    rates: tuple[Rate, ...]
    recoveries: tuple[Recovery, ...]
    changes: tuple[Change, ...]
    healings: tuple[Healing, ...]
    comparison: Comparison | None
    reference: Ledger | None

    @property
    def target_steps(self) -> int | None:
        steps = self.history.setting("training", "steps")
        return steps if isinstance(steps, int) else None

    @property
    def last_step(self) -> int:
        return self.ledger.steps[-1].step if self.ledger.steps else 0

    @property
    def complete(self) -> bool:
        """Whether the last step of the config was committed."""
        return self.last_step > 0 and (self.target_steps is None or self.last_step >= self.target_steps)

    @property
    def mttrs_s(self) -> tuple[float, ...]:
        """Of every recovery that led to a commit, those that another fault overtook included."""
        return tuple(one.mttr_s for one in self.recoveries if one.mttr_s is not None)

    @property
    def failures(self) -> tuple[str, ...]:
        """Promises this run did not keep, one line each; none in a good run."""
        found = []
        if not self.complete:
            found.append(f"stopped at step {self.last_step} of {self.target_steps or '?'}")
            errors = [note.text for note in self.history.notes if note.kind == "error"]
            found.extend(list(dict.fromkeys(reversed(errors)))[:MOST_ERRORS])
        if self.ledger.samples_lost:
            found.append(f"{self.ledger.samples_lost} samples were never trained")
        if self.ledger.duplicate_samples:
            found.append(f"{self.ledger.duplicate_samples} samples were trained twice")
        if self.ledger.disagreements:
            found.append(f"ranks disagree about step {self.ledger.disagreements[0]}")
        if self.comparison is not None and self.comparison.verdict != "equal":
            found.append(f"not equal to the reference: {self.comparison.reason}")
        found.extend(
            f"the loss of rank {', '.join(map(str, r.lost_ranks))} in view {r.epoch} was not recovered from"
            for r in self.recoveries
            if r.mttr_s is None
        )
        return tuple(found)


def report_build(history: History, reference: History | None = None) -> Report:
    """Work out everything there is to say about a run.

    Args:
        history: of the run.
        reference: of an unharmed run of the same config, to be equal to bit for bit.
    """
    accounts = ledger(history)
    return Report(
        history=history,
        ledger=accounts,
        rates=rates(accounts.steps),
        recoveries=recoveries(history),
        changes=changes(history),
        healings=healings(history),
        comparison=compare(history, reference) if reference is not None else None,
        reference=ledger(reference) if reference is not None else None,
    )


def as_json(report: Report) -> dict[str, Any]:
    """`report.json` as plain values: numbers that JSON does not have become null."""
    history, accounts = report.history, report.ledger
    shares = [one.recomputed_share for one in report.recoveries]
    values = {
        "schema": SCHEMA,
        "name": history.name,
        "started_utc": datetime.fromtimestamp(history.started_t, UTC).isoformat(timespec="seconds"),
        "wall_s": history.ended_t - history.started_t,
        "ok": not report.failures,
        "failures": list(report.failures),
        "config": history.config,
        "steps": _steps(report),
        "samples_lost": accounts.samples_lost,
        "digest": _digest(report),
        "mttr": {
            "median_s": median(report.mttrs_s) if report.mttrs_s else None,
            "max_s": max(report.mttrs_s, default=None),
            "n": len(report.mttrs_s),
        },
        "recomputed_share": {
            "median": median(shares) if shares else None,
            "max": max(shares, default=None),
            "n": len(shares),
        },
        "recoveries": [_recovery(report, one) for one in report.recoveries],
        "changes": [_relative(asdict(one), history.started_t) for one in report.changes],
        "healings": [_relative(asdict(one), history.started_t) for one in report.healings],
        "members": [_relative(asdict(one), history.started_t) for one in history.members],
        "views": [_relative(asdict(one), history.started_t) for one in history.views],
        "faults": [_relative(asdict(one), history.started_t) for one in history.faults],
        "notes": [_relative(asdict(one), history.started_t) for one in history.notes],
        "skipped_events": history.skipped,
    }
    return _plain(values)


def _steps(report: Report) -> dict[str, Any]:
    accounts = report.ledger
    last = accounts.steps[-1] if accounts.steps else None
    by_epoch = median_rate_by_epoch(report.rates)
    return {
        "number": len(accounts.steps),
        "last": report.last_step,
        "target": report.target_steps,
        "final_loss": last.loss if last else None,
        "samples": accounts.samples,
        "duplicate_samples": accounts.duplicate_samples,
        "missing_samples": accounts.samples_lost,
        "unconfirmed_samples": accounts.unconfirmed_samples,
        "missing_steps": list(accounts.gaps),
        "disagreeing_steps": list(accounts.disagreements),
        "attempted_again": [step.step for step in accounts.steps if step.attempts > 1],
        "tokens_per_s": median([rate.tokens_per_s for rate in report.rates]) if report.rates else None,
        "tokens_per_s_by_epoch": {str(epoch): rate for epoch, rate in by_epoch.items()},
        "losses": [step.loss for step in accounts.steps],
        "digests": [step.digest for step in accounts.steps],
    }


def _digest(report: Report) -> dict[str, Any]:
    last = report.ledger.steps[-1] if report.ledger.steps else None
    found: dict[str, Any] = {"final": last.digest if last else None, "reference": None, "first_mismatch_step": None}
    if report.comparison is not None:
        found["reference"] = str(report.comparison.verdict)
        found["first_mismatch_step"] = report.comparison.first_mismatch_step
        found["equal_steps"] = report.comparison.equal_steps
        found["reason"] = report.comparison.reason
    return found


def _recovery(report: Report, one: Recovery) -> dict[str, Any]:
    before, after = rate_around(report.rates, one.epoch)
    values = _relative(asdict(one), report.history.started_t)
    values["phases_s"] = {str(phase): one.phases_s.get(str(phase), 0.0) for phase in Phase}
    return {**values, "tokens_per_s_before": before, "tokens_per_s_after": after}


def _relative(values: dict[str, Any], start_t: float) -> dict[str, Any]:
    """Wall times as seconds from the start of the run."""
    return {
        (f"{key[:-2]}_s" if key.endswith("_t") else "t_s" if key == "t" else key): (
            value - start_t if (key == "t" or key.endswith("_t")) and isinstance(value, float) else value
        )
        for key, value in values.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
