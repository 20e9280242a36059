"""Which micro-batches each step was made of, and how fast: the ledger that shows nothing lost and nothing twice."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from elaswave.report.facts import Commit, History

RATE_STEPS = 20
"""Steps on each side of a change whose median rate is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One committed step.

    Attributes:
        t: when its last rank committed, wall seconds.
        epoch: newest view in which a rank committed it.
        loss: as the lowest rank told it; `agreed` says whether all told the same bits.
        duplicates: micro-batch ids that more than one rank counted, or that the step does not have.
        missing: micro-batch ids that nobody counted.
        unconfirmed: ids that nobody is left to vouch for: a member died between the vote and its report, so they
            are in the sum, but no event says so.
        attempts: views in which somebody committed it; more than one after a fault in the middle of a commit.
    """

    step: int
    t: float
    epoch: int
    ranks: tuple[int, ...]
    loss: float | None
    digest: str | None
    agreed: bool
    tokens: int
    micro_batches: int
    duplicates: tuple[int, ...]
    missing: tuple[int, ...]
    unconfirmed: tuple[int, ...]
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All steps, in order, and what they add up to.

    Attributes:
        samples_per_micro_batch: 1 when the config is unknown; then samples are micro-batches.
        gaps: step numbers between the first and the last that nobody committed.
    """

    steps: tuple[Step, ...]
    gaps: tuple[int, ...]
    samples_per_micro_batch: int
    micro_batches_per_step: int | None

    @property
    def samples(self) -> int:
        """Samples trained, each counted once."""
        return self.samples_per_micro_batch * sum(step.micro_batches for step in self.steps)

    @property
    def duplicate_samples(self) -> int:
        return self.samples_per_micro_batch * sum(len(step.duplicates) for step in self.steps)

    @property
    def samples_lost(self) -> int:
        """Samples of the data order that were never trained, whole steps included."""
        missing = sum(len(step.missing) for step in self.steps)
        return self.samples_per_micro_batch * (missing + len(self.gaps) * (self.micro_batches_per_step or 0))

    @property
    def unconfirmed_samples(self) -> int:
        return self.samples_per_micro_batch * sum(len(step.unconfirmed) for step in self.steps)

    @property
    def disagreements(self) -> tuple[int, ...]:
        """Steps for which two ranks told different losses or digests."""
        return tuple(step.step for step in self.steps if not step.agreed)


def ledger(history: History) -> Ledger:
    """Account for every micro-batch of every step."""
    size = history.setting("training", "micro_batch_size")
    batch = history.setting("training", "train_batch_size")
    expected = batch // size if isinstance(size, int) and isinstance(batch, int) and size > 0 else None
    groups: dict[int, list[Commit]] = {}
    for commit in history.commits:
        groups.setdefault(commit.step, []).append(commit)
    steps = tuple(_step(history, number, groups[number], expected) for number in sorted(groups))
    numbers = range(min(groups), max(groups)) if groups else range(0)
    return Ledger(
        steps=steps,
        gaps=tuple(number for number in numbers if number not in groups),
        samples_per_micro_batch=size if isinstance(size, int) else 1,
        micro_batches_per_step=expected,
    )


def _step(history: History, number: int, commits: Sequence[Commit], expected: int | None) -> Step:
    kept = _final_attempt(commits, expected)
    counts = Counter(m for commit in kept for m in commit.micro_batches)
    wanted = set(counts) if expected is None else set(range(expected))
    absent = sorted(wanted - counts.keys())
    vouched = any(commit.counted == expected for commit in kept) if expected is not None else False
    silent = bool(absent) and not vouched and _somebody_silent(history, number, kept)
    first = min(kept, key=lambda commit: (commit.rank, commit.t))
    return Step(
        step=number,
        t=max(commit.t for commit in kept),
        epoch=max(commit.epoch for commit in kept),
        ranks=tuple(sorted({commit.rank for commit in kept})),
        loss=first.loss,
        digest=first.digest,
        agreed=len({(_bits(commit.loss), commit.digest) for commit in kept}) == 1,
        tokens=max(commit.tokens for commit in kept),
        micro_batches=len(wanted & counts.keys()) + (len(absent) if vouched or silent else 0),
        duplicates=tuple(sorted(m for m, count in counts.items() if count > 1 or m not in wanted)),
        missing=() if vouched or silent else tuple(absent),
        unconfirmed=tuple(absent) if silent else (),
        attempts=len({commit.epoch for commit in commits}),
    )


def _bits(loss: float | None) -> str | None:
    """A text that is equal exactly when the bits are, NaN and signed zero included."""
    return None if loss is None else loss.hex()


def _final_attempt(commits: Sequence[Commit], expected: int | None) -> list[Commit]:
    """The commits that count.

    When the newest view's ranks account for the whole step, the step was replayed there and earlier commits were
    rolled back. Otherwise one attempt was finished over two views, and a rank's newest word counts.
    """
    newest_epoch = max(commit.epoch for commit in commits)
    newest = _last_word(commit for commit in commits if commit.epoch == newest_epoch)
    ids = {m for commit in newest for m in commit.micro_batches}
    earlier = {m for commit in commits for m in commit.micro_batches}
    whole = len(ids) >= expected if expected is not None else ids >= earlier
    return newest if whole else _last_word(commits)


def _last_word(commits: Iterable[Commit]) -> list[Commit]:
    """Each worker's newest commit."""
    found: dict[str, Commit] = {}
    for commit in commits:
        before = found.get(commit.worker_id)
        if before is None or (commit.epoch, commit.t) >= (before.epoch, before.t):
            found[commit.worker_id] = commit
    return list(found.values())


def _somebody_silent(history: History, number: int, kept: Sequence[Commit]) -> bool:
    """Whether a member of the views in which a step was computed has not reported it.

    The step was computed in the oldest view that a rank committed it in, or, where a recovery found it complete and
    carried it forward, in the view before that recovery.
    """
    epoch = min(commit.epoch for commit in kept)
    if any(one.epoch == epoch and one.step >= number for one in history.recovered):
        epoch = max((view.epoch for view in history.views if view.epoch < epoch), default=epoch)
    view = history.view_at(epoch)
    return view is not None and not view.worker_ids() <= {commit.worker_id for commit in kept}


# -- how fast -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second of one step, measured from the commit before to its own."""

    step: int
    t: float
    epoch: int
    seconds: float
    tokens_per_s: float


def rates(steps: Sequence[Step]) -> tuple[Rate, ...]:
    """The rate of every step that follows the one before it; the first has none."""
    found = []
    for before, step in pairwise(steps):
        seconds = step.t - before.t
        if step.step == before.step + 1 and seconds > 0:
            found.append(
                Rate(step=step.step, t=step.t, epoch=step.epoch, seconds=seconds, tokens_per_s=step.tokens / seconds)
            )
    return tuple(found)


def median_rate_by_epoch(measured: Sequence[Rate]) -> Mapping[int, float]:
    """Median tokens per second in each view, without its first step, which carries the cost of the change."""
    by_epoch: dict[int, list[float]] = {}
    for rate in measured:
        by_epoch.setdefault(rate.epoch, []).append(rate.tokens_per_s)
    return {epoch: median(values[1:]) for epoch, values in by_epoch.items() if len(values) > 1}


def rate_around(measured: Sequence[Rate], epoch: int) -> tuple[float | None, float | None]:
    """Median tokens per second of the last steps before a view and of the first full ones in it."""
    before = [rate for rate in measured if rate.epoch < epoch]
    same = [rate.tokens_per_s for rate in before if rate.epoch == before[-1].epoch][-RATE_STEPS:]
    after = [rate.tokens_per_s for rate in measured if rate.epoch == epoch][1 : RATE_STEPS + 1]
    return (median(same) if same else None, median(after) if after else None)
