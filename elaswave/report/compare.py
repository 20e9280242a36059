"""Compares two runs step by step, bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from elaswave.report.facts import History
from elaswave.report.steps import Step, ledger

IDENTITY = ("model", "data", "training", "optimizer")
"""Sections of the config that decide the bits of a run; workers, snapshots and timeouts must not."""


class Verdict(StrEnum):
    """Outcome of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    INCOMPARABLE = "incomparable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value that differs: a setting, or what a step came to."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two runs have in common.

    Attributes:
        equal_steps: steps in both with the same bits.
        common_steps: steps in both.
        digests_compared: common steps for which both runs told a state digest; the others go by their loss alone.
        first_mismatch_step: None when all common steps are equal.
        differences: settings that must be equal and are not, or the values of the first mismatch.
        last_steps: newest step of each run.
        reason: one line for people.
    """

    verdict: Verdict
    equal_steps: int
    common_steps: int
    digests_compared: int
    first_mismatch_step: int | None
    differences: tuple[Difference, ...]
    last_steps: tuple[int, int]
    reason: str


def compare(a: History, b: History) -> Comparison:
    """Compare losses and state digests of every step that both runs committed."""
    steps_a = {step.step: step for step in ledger(a).steps}
    steps_b = {step.step: step for step in ledger(b).steps}
    common = sorted(steps_a.keys() & steps_b.keys())
    last = (max(steps_a, default=0), max(steps_b, default=0))
    settings = differing_settings(a.config, b.config)
    bad = [number for number in common if step_differences(steps_a[number], steps_b[number])]
    first = bad[0] if bad else None
    digests = sum(steps_a[number].digest is not None and steps_b[number].digest is not None for number in common)
    begin = _begin(a, steps_a), _begin(b, steps_b)
    start = max((step for step in begin if step is not None), default=0)
    due = [{number for number in steps if number >= start} for steps in (steps_a, steps_b)]
    verdict, reason = _judge(settings, len(common), digests, first, due[0] == due[1], last)
    if verdict is Verdict.EQUAL and start:
        reason += f"; one run goes on from a checkpoint and begins at step {start}"
    found = () if first is None else step_differences(steps_a[first], steps_b[first])
    return Comparison(
        verdict=verdict,
        equal_steps=len(common) - len(bad),
        common_steps=len(common),
        digests_compared=digests,
        first_mismatch_step=first,
        differences=settings or found,
        last_steps=last,
        reason=reason,
    )


def _begin(history: History, steps: Mapping[int, Step]) -> int | None:
    """First step of a run that goes on from a checkpoint."""
    return min(steps, default=None) if history.setting("checkpoint", "resume") else None


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Settings of the run's identity that differ; nothing when either config is unknown."""
    if not a or not b:
        return ()
    found = []
    for section in IDENTITY:
        left, right = a.get(section) or {}, b.get(section) or {}
        found.extend(
            Difference(what=f"{section}.{key}", a=repr(left.get(key)), b=repr(right.get(key)))
            for key in sorted({*left, *right})
            if left.get(key) != right.get(key)
        )
    return tuple(found)


def step_differences(a: Step, b: Step) -> tuple[Difference, ...]:
    """Loss and digest of one step where they differ; a digest that one run did not tell is not compared."""
    found = []
    if (None if a.loss is None else a.loss.hex()) != (None if b.loss is None else b.loss.hex()):
        found.append(Difference(what="loss", a=repr(a.loss), b=repr(b.loss)))
    if a.digest is not None and b.digest is not None and a.digest != b.digest:
        found.append(Difference(what="digest", a=a.digest, b=b.digest))
    return tuple(found)


def _judge(
    settings: tuple[Difference, ...],
    common: int,
    digests: int,
    first: int | None,
    same_steps: bool,
    last: tuple[int, int],
) -> tuple[Verdict, str]:
    if settings:
        return Verdict.INCOMPARABLE, "the runs have different settings"
    if not common:
        return Verdict.INCOMPARABLE, "the runs have no step in common"
    if first is not None:
        return Verdict.DIFFERENT, f"step {first} differs"
    if not same_steps:
        return Verdict.DIFFERENT, f"equal as far as both go, but one ends at step {last[0]}, the other at {last[1]}"
    by = "losses and parameters" if digests == common else f"losses (and the state of {digests} steps)"
    return Verdict.EQUAL, f"all {common} steps are equal, bit for bit: {by}"
