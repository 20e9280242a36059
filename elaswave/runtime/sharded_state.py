"""The sharded state through changes of layout: which layouts a worker is in, and whether they hold what was committed.

A worker is in one layout, filled or on its way to be. Until a vote or a commit has proved the new one whole on every
member, the last one that was whole is kept beside it, and is what a further fault goes back to.
"""

from collections.abc import Sequence

from elaswave.config import Snapshot
from elaswave.errors import CorruptState, Damaged
from elaswave.pipeline.weights import Weights
from elaswave.runtime.exchange import unsigned
from elaswave.runtime.holding import Holding
from elaswave.runtime.migration import Migration
from elaswave.runtime.vote import Vote
from elaswave.snapshot.verify import combine, digest

DAMAGES_MAX = 3
"""How often the state of one step is restored because it is damaged, before the job gives up."""
GENERATION_BITS = 8
"""Of the number of a layout: how often one view may begin anew."""
ROW_WORDS = 5
"""Of the row that a member tells at a commit: words before the parts of the digests of the weights."""


class ShardedState:
    """One worker's part.

    Args:
        settings: what is proved, and how often.

    Attributes:
        truth: per unit the digest of its weights after the last committed step; empty when nobody has told.
    """

    def __init__(self, settings: Snapshot) -> None:
        self.truth: tuple[int, ...] = ()
        self._settings = settings
        self._held: Holding | None = None
        self._before: Holding | None = None
        self._migration: Migration | None = None
        self._digest = 0
        self._damages: list[int] = []

    # -- layouts -----------------------------------------------------------------------------------------------

    @property
    def entered(self) -> bool:
        """This worker is in a layout."""
        return self._held is not None

    @property
    def holding(self) -> Holding:
        """The current layout."""
        assert self._held is not None, "attempts() makes the first layout"
        return self._held

    @property
    def migration(self) -> Migration:
        """What is on its way into the current layout."""
        assert self._migration is not None, "attempts() makes the first layout"
        return self._migration

    def holdings(self) -> list[Holding]:
        """The current layout and, until its first commit, the last one that was whole before."""
        return [held for held in (self._held, self._before) if held is not None]

    def next_number(self, epoch: int) -> int:
        """Number of the layout that is made now: equal on all members, larger than all before.

        Args:
            epoch: of the view it is made in.
        """
        before = max((held.number for held in self.holdings()), default=0)
        return max(epoch << GENERATION_BITS, before + 1)

    def release(self) -> None:
        """End shipping and migration that will not complete; copies that have arrived count."""
        if self._migration is not None:
            self._migration.abandon()
        for held in self.holdings():
            held.pool.settle()

    def enter(self, held: Holding, migration: Migration, state_digest: int, truth: tuple[int, ...]) -> None:
        """Go on in a new layout; the one before is kept if it was whole.

        Args:
            held: the new layout.
            migration: what fills it.
            state_digest: of the whole state that is on its way.
            truth: per unit the digest of its weights.
        """
        if self._held is not None and self._held.whole:
            self._before = self._held
        self._held, self._migration = held, migration
        self._digest, self.truth = state_digest, truth

    def commit(self, step: int, rows: Sequence[Sequence[int]]) -> int:
        """Name the new version the current one; every layout before is over.

        Args:
            step: that is committed.
            rows: see `Job.commit`.

        Returns:
            Digest of the whole state.
        """
        held = self.holding
        held.optimizer.commit()
        held.record(step, [unsigned(row[0]) for row in rows])
        self.truth = tuple(combine(column) for column in list(zip(*rows, strict=True))[ROW_WORDS:])
        self._before = None
        return combine(held.digests[step])

    # -- proofs ------------------------------------------------------------------------------------------------

    def digest(self, step: int) -> int:
        """Of the own shard that the step after `step` begins from, as it is now; 0 when nobody wants to know."""
        if self.migration.pending:
            return self.migration.digest
        return self.holding.digest(self.holding.index, step) if self._settings.verify else 0

    def damages(self, step: int, weights: Weights) -> tuple[int, int]:
        """Units of the weights that the step after `step` was computed with, and copies, that are not as committed."""
        every = self._settings.scrub_steps
        scrubbed = every and step % every == 0 and not self.migration.pending
        return (
            len(weights.damaged(step, self.truth, digest)) if self._settings.verify_weights else 0,
            len(self.holding.damaged_copies(step)) if scrubbed else 0,
        )

    def check_vote(self, step: int, vote: Vote) -> None:
        """What all members begin from after `step`, and computed with, is what was committed.

        Raises:
            Damaged: it is not; every member finds the same.
            CorruptState: likewise, again and again.
        """
        self.check(step, vote.digests)
        if vote.damaged_weights:
            raise self._damage(step, f"{vote.damaged_weights} units of the weights of step {step} are damaged")
        if vote.damaged_copies:
            raise self._damage(step, f"{vote.damaged_copies} copies of shards of step {step} are damaged")

    def check_commit(self, step: int, rows: Sequence[Sequence[int]]) -> None:
        """No member has made its new version from a shard of `step` that was damaged after the vote.

        Args:
            step: the last committed one.
            rows: see `Job.commit`.

        Raises:
            Damaged: one has, and has taken its version back; every member finds the same.
            CorruptState: likewise, again and again.
        """
        if wrong := [shard for shard, row in enumerate(rows) if row[4]]:
            raise self._damage(step, f"the live state of shards {wrong} of step {step} was damaged after the vote")

    def check(self, step: int, digests: tuple[int, ...]) -> None:
        """What all members hold of `step` is what was committed; a new layout is proved whole by that.

        Args:
            step: the last committed one.
            digests: of every shard as its owner has it now.

        Raises:
            Damaged: it is not; every member finds the same.
            CorruptState: likewise, again and again.
        """
        held = self.holding
        if self.migration.pending:
            if combine(digests) != self._digest:
                raise self._damage(step, f"what arrived of step {step} in a new layout is not what was sent")
            held.record(step, digests)
            held.whole, self.migration.pending = True, False
        elif self._settings.verify and (known := held.digests[step]) != digests:
            wrong = [shard for shard, pair in enumerate(zip(known, digests, strict=True)) if pair[0] != pair[1]]
            raise self._damage(step, f"the live state of shards {wrong} of step {step} is not what was committed")

    def _damage(self, step: int, message: str) -> CorruptState:
        """An end to trying when one step is damaged again and again."""
        self._damages = [*(known for known in self._damages if known == step), step]
        return (Damaged if len(self._damages) <= DAMAGES_MAX else CorruptState)(message)
