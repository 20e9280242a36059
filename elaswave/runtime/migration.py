"""State on its way into a new layout, behind the training: needed when the step is reduced and updated, not before.

ElasWave, https://arxiv.org/abs/2510.00606, "non-blocking migration": weights come first and are waited for; master
weights and optimizer state stream while the interrupted step is computed. Until every member has proved in a vote that
all of it has arrived, the old layout stays whole and is what a further fault goes back to.
"""

import torch

from elaswave.block import Scalars
from elaswave.runtime.holding import Holding
from elaswave.zero.remap import Remap


class Migration:
    """One worker's part.

    Args:
        held: the new layout, to be filled.
        version: step after which the state was so.
        scalars: of that version; None when the layout is filled already.
        shards: fills the shard; None when it is filled already.
        sums: brings the parts of the open step's gradient that members hold of layers which they do not compute any
            more; None when there are none.
        extra: where they are added up, as long as the shard.

    Attributes:
        pending: the shard is not whole yet, or not everybody knows that all are.
        digest: of the shard as it arrived.
    """

    def __init__(
        self,
        held: Holding,
        version: int,
        scalars: Scalars | None = None,
        shards: Remap | None = None,
        sums: Remap | None = None,
        extra: torch.Tensor | None = None,
    ) -> None:
        self._held, self._version, self._scalars = held, version, scalars
        self._shards, self._sums, self._extra = shards, sums, extra
        self.pending, self.digest = True, 0
        self._arrived = False

    @property
    def bytes_received(self) -> int:
        """From other workers, when all has arrived."""
        return sum(remap.bytes_received for remap in (self._shards, self._sums) if remap is not None)

    def progress(self) -> None:
        """Take in what has arrived, without waiting."""
        if not self._arrived and (self._shards is None or self._shards.ready):
            self.finish()

    def finish(self) -> None:
        """Wait for the shard, and begin to make its copies.

        Raises:
            PeerLost: a member was lost; the old layout is as it was.
        """
        if self._arrived:
            return
        if self._shards is not None:
            self._shards.finish()
            assert self._scalars is not None
            self._held.optimizer.adopt(self._version, self._scalars)
        self._arrived = True
        self.digest = self._held.digest(self._held.index, self._version)
        self._held.pool.establish(self._held.optimizer.state())

    def add_sums(self, reduced: torch.Tensor) -> None:
        """Add what other members had computed of the open step, once it has arrived.

        Args:
            reduced: the shard of the gradient, as reduced so far.
        """
        if self._sums is not None and self._extra is not None:
            self._sums.finish()
            reduced.add_(self._extra)
            self._sums = None
