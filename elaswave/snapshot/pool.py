"""Snapshot Pool: every step, each worker's shard also exists on neighbours, built while the next forward runs.

ElasWave, https://arxiv.org/abs/2510.00606; in-memory copies at peers as in Gemini,
https://doi.org/10.1145/3600006.3613145.

When a step has been committed, `start` ships it; `finish` must return before the vote of the next step. Then the vote
tells every member that all copies are whole, and the optimizer may overwrite the version before. At any instant
some version is whole at every owner and at all holders of its copies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from elaswave.block import Scalars, Slot
from elaswave.communicator.group import Group
from elaswave.communicator.transfers import Handle
from elaswave.config import SnapshotMode
from elaswave.snapshot.copy import Copy
from elaswave.snapshot.ring import Holding

TAG = 0x5A02


@dataclass(slots=True, kw_only=True)
class Ticket:
    """A version on its way to its holders, and those of others on their way here.

    Attributes:
        version: step that is shipped.
        whole: whole states travel, not what follows from one step.
        bytes_sent: by this worker.
    """

    version: int
    whole: bool
    scalars: Scalars
    lr: float
    sends: list[Handle] = field(default_factory=list)
    receives: dict[int, Handle | None] = field(default_factory=dict)
    bytes_sent: int = 0

    @property
    def handles(self) -> list[Handle]:
        """Everything that is still to wait for."""
        return [*self.sends, *(handle for handle in self.receives.values() if handle is not None)]

    @property
    def done(self) -> bool:
        """Everything has been sent and received; `finish` will not wait."""
        return all(handle.done for handle in self.handles)


class Pool:
    """The copies that this worker keeps in one layout; a new layout gets a new pool.

    Attributes:
        layout_epoch: epoch of the layout.
        copies: by index of the shard.
    """

    def __init__(
        self,
        group: Group,
        *,
        layout_epoch: int,
        holders: Sequence[Sequence[int]],
        make_copy: Callable[[int], Copy],
        mode: SnapshotMode,
    ) -> None:
        """
        Args:
            group: member i owns shard i of the layout.
            layout_epoch: epoch of the layout.
            holders: per shard the members that keep a copy, as `ring.holders` tells it.
            make_copy: index of a shard -> an empty copy of the kind that goes with `mode`.
            mode: what is shipped at every step.
        """
        if len(holders) != group.size:
            raise ValueError(f"{len(holders)} shards for {group.size} members")
        self._group = group
        self._index = group.rank
        self._mode = SnapshotMode(mode)
        self._num_shards = len(holders)
        self._holders = tuple(holders[self._index])
        self.layout_epoch = layout_epoch
        kept = [shard for shard, members in enumerate(holders) if self._index in members]
        self.copies: Mapping[int, Copy] = {shard: make_copy(shard) for shard in kept}
        self._ticket: Ticket | None = None

    def rooms(self) -> list[Callable[[], object]]:
        """What uses memory of new copies for the first time that their first version does not fill."""
        return [room for copy in self.copies.values() for room in copy.rooms()]

    def establish(self, own: Slot) -> Ticket:
        """Begin to make the first copies, whole whatever the mode; every member calls it at the same version.

        Args:
            own: this worker's committed version; must not change until `finish` has returned.
        """
        targets = {shard: copy.state_target() for shard, copy in self.copies.items()}
        return self._ship(own, own.raw, targets, whole=True, lr=0.0)

    def start(self, own: Slot, *, gradient: torch.Tensor, lr: float) -> Ticket:
        """Begin to ship a committed step; every member calls it for the same one.

        Args:
            own: this worker's committed version; must not change until `finish` has returned.
            gradient: of that step as the optimizer used it, such as `ShardedOptimizer.gradient`; likewise.
            lr: learning rate of that step.
        """
        payload = own.raw if self._mode is SnapshotMode.STATE else gradient
        targets = {shard: copy.step_target() for shard, copy in self.copies.items()}
        return self._ship(own, payload, targets, whole=False, lr=lr)

    def _ship(
        self, own: Slot, payload: torch.Tensor, targets: Mapping[int, torch.Tensor], *, whole: bool, lr: float
    ) -> Ticket:
        if self._ticket is not None:
            raise ValueError(f"version {self._ticket.version} is still being shipped; call finish() first")
        if own.version is None:
            raise ValueError("only a whole version can be shipped")
        ticket = self._ticket = Ticket(version=own.version, whole=whole, scalars=own.scalars, lr=lr)
        for shard, target in targets.items():
            ticket.receives[shard] = self._group.irecv(target, shard, TAG) if target.numel() else None
        if payload.numel():
            for member in self._holders:
                ticket.sends.append(self._group.isend(payload, member, TAG))
                ticket.bytes_sent += payload.nbytes
        return ticket

    def finish(self) -> None:
        """Wait until what was started is here and there; at once when nothing was.

        Raises:
            PeerLost: a member was lost; copies that did arrive count, the others stay at their version before.
        """
        if self._ticket is None:
            return
        try:
            self._group.wait(self._ticket.handles)
        finally:
            self.settle()

    def settle(self) -> None:
        """End shipping without waiting, after a member was lost; copies that have arrived count."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        for shard, handle in ticket.receives.items():
            if handle is not None and not handle.done:
                continue
            if ticket.whole:
                self.copies[shard].accept_state(ticket.version, ticket.scalars)
            else:
                self.copies[shard].accept_step(ticket.version, ticket.scalars, ticket.lr)

    def holdings(self) -> tuple[Holding, ...]:
        """The copies that are whole, to offer after a loss."""
        return tuple(
            Holding(
                layout_epoch=self.layout_epoch,
                num_shards=self._num_shards,
                shard=shard,
                version=version,
                owner=False,
            )
            for shard, copy in self.copies.items()
            for version in copy.versions
        )
