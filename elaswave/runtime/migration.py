"""State on its way into a new layout, behind the training: needed when the step is reduced and updated, not before.

ElasWave, https://arxiv.org/abs/2510.00606, "non-blocking migration": weights come first and are waited for; master
weights and optimizer state stream while the interrupted step is computed. Until every member has proved in a vote that
all of it has arrived, the old layout stays whole and is what a further fault goes back to.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from elaswave.block import Scalars
from elaswave.clock import SYSTEM
from elaswave.runtime.holding import Holding
from elaswave.zero.remap import Remap


class Migration:
    """One worker's part.

    What is copied on this worker, and memory that is used for the first time, is left to a thread of its own; messages
    are the main thread's.

    Args:
        held: the new layout, to be filled.
        version: step after which the state was so.
        scalars: of that version; None when the layout is filled already.
        shards: fills the shard; None when it is filled already.
        sums: brings the parts of the open step's gradient that members hold of layers which they do not compute any
            more; None when there are none.
        extra: where they are added up, as long as the shard.
        weight_bytes: weights that came here beforehand, from other workers.

    Attributes:
        pending: the shard is not whole yet, or not everybody knows that all are.
        digest: of the shard as it arrived.
        waited_s: how long training has waited for what is on its way.
    """

    def __init__(
        self,
        held: Holding,
        version: int,
        scalars: Scalars | None = None,
        shards: Remap | None = None,
        sums: Remap | None = None,
        extra: torch.Tensor | None = None,
        weight_bytes: int = 0,
    ) -> None:
        self.weight_bytes = weight_bytes
        self._held, self._version, self._scalars = held, version, scalars
        self._shards, self._sums, self._extra = shards, sums, extra
        self.pending, self.digest, self.waited_s = True, 0, 0.0
        self._begun = self._taking = self._arrived = False
        self._thread: ThreadPoolExecutor | None = None
        self._packed: Future[object] | None = None
        self._copied: list[Future[object]] = []
        self._rooms: list[Future[object]] = []

    @property
    def bytes_received(self) -> int:
        """From other workers, when all has arrived."""
        return sum(remap.bytes_received for remap in (self._shards, self._sums) if remap is not None)

    def progress(self) -> None:
        """Begin, or take in what has arrived, without waiting."""
        if not self._begun:
            self._begin()
        elif not self._arrived and self._goes_on():
            self._settle()

    def _begin(self) -> None:
        """Ask for what is to come, and begin to copy."""
        self._begun = True
        if self._shards is not None:
            self._shards.ask()
            self._packed = self._behind(self._shards.pack)
            self._copied = [self._packed, self._behind(self._shards.keep)]

    def _goes_on(self) -> bool:
        """Do what can be done without waiting; whether the shard has arrived and everything is copied."""
        if self._packed is not None and self._packed.done():
            self._send()
        if self._shards is not None and self._packed is None and not self._taking and self._shards.ready:
            self._take_behind()
        return self._shards is None or (self._taking and all(work.done() for work in self._copied))

    def arrive(self) -> None:
        """Wait for the shard, and begin to make its copies.

        Raises:
            PeerLost: a member was lost; the old layout is as it was.
        """
        if self._arrived:
            return
        start = SYSTEM.monotonic()
        if not self._begun:
            self._begin()
        if self._packed is not None:
            self._send()
        if self._shards is not None and not self._taking:
            self._shards.wait()
            self._take_behind()
        self._settle()
        self.waited_s += SYSTEM.monotonic() - start

    def finish(self) -> None:
        """Wait for the shard, and for memory that the next step will fill.

        Raises:
            PeerLost: a member was lost; the old layout is as it was.
        """
        self.arrive()
        if self._thread is not None:
            start = SYSTEM.monotonic()
            for room in self._rooms:
                room.result()
            self._thread.shutdown(wait=False)  # it has nothing left to do, and its end is not waited for
            self._thread = None
            self.waited_s += SYSTEM.monotonic() - start

    def abandon(self) -> None:
        """Give up, after a member was lost: nothing is written any more once this returns."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def _behind(self, work: Callable[[], object]) -> Future[object]:
        """Let the thread do something after what it was given before."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "migration")
        return self._thread.submit(work)

    def _send(self) -> None:
        assert self._shards is not None
        assert self._packed is not None
        self._packed.result()
        self._shards.send()
        self._packed = None

    def _take_behind(self) -> None:
        self._copied.append(self._behind(self._take))
        self._taking = True

    def _take(self) -> None:
        assert self._shards is not None
        assert self._scalars is not None
        self._shards.take()
        self._held.optimizer.adopt(self._version, self._scalars)
        self.digest = self._held.digest(self._held.index, self._version)

    def _settle(self) -> None:
        """Everything has arrived: let the thread copy the rest of it, and use memory that is needed next."""
        for work in self._copied:
            work.result()
        if self._shards is None:
            self.digest = self._held.digest(self._held.index, self._version)
        self._arrived = True
        self._rooms = [self._behind(room) for room in self._held.rooms()]
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
