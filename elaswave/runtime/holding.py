"""Everything a worker holds of the sharded state in one layout: its own shard, and copies of its neighbours'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from elaswave.block import Slot
from elaswave.communicator.group import Group
from elaswave.config import Config, SnapshotMode
from elaswave.memory import allocate
from elaswave.pipeline.stage import Stage
from elaswave.planner.plan import Plan
from elaswave.runtime.proofs import Proof, prove
from elaswave.snapshot import ring
from elaswave.snapshot.copy import Copy, ReplayCopy, StateCopy
from elaswave.snapshot.pool import Pool
from elaswave.snapshot.verify import digest
from elaswave.zero.layout import Bucket, Layout, Range, cut
from elaswave.zero.optimizer import ShardedOptimizer
from elaswave.zero.remap import Part
from elaswave.zero.schema import Make, Schema

SPARE = 4
"""Of the memory of a gradient, one part in so many is kept free for a larger shard; pages not used cost nothing."""


@dataclass(slots=True, kw_only=True)
class Holding:
    """Own shard and copies in the layout of one view.

    Attributes:
        number: of the layout; later ones are larger.
        index: of this worker's shard.
        layout: who owns what.
        reduced: where the summed gradient of the own shard arrives.
        whole: every member has proved that its part of the layout is here; before that nothing of it is on offer.
        digests: for each recent version the digest of every shard, as the owners announced them.
    """

    number: int
    index: int
    layout: Layout
    optimizer: ShardedOptimizer
    pool: Pool
    reduced: torch.Tensor
    whole: bool = False
    digests: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def holdings(self) -> list[ring.Holding]:
        """Every whole shard that is here, own and copied."""
        if not self.whole:
            return []
        own = [
            ring.Holding(
                layout_epoch=self.number,
                num_shards=self.layout.num_shards,
                shard=self.index,
                version=version,
                owner=True,
            )
            for version in self.optimizer.versions
        ]
        return [*own, *self.pool.holdings()]

    def state(self, shard: int, version: int) -> Slot:
        """Tensors and scalars of a shard that is here.

        Raises:
            KeyError: it is not here at that version.
        """
        if shard == self.index:
            return self.optimizer.state(version)
        return self.pool.copies[shard].state(version)

    def part(self, shard: int, version: int) -> Part:
        return Part(ranges=self.layout.ranges(shard), tensors=self.state(shard, version).tensors)

    def digest(self, shard: int, version: int) -> int:
        """Digest of a shard as it is here now."""
        return digest(self.layout.ranges(shard), self.state(shard, version).tensors)

    def prove(self, version: int, stage: Stage) -> Proof:
        """Digests of the own shard, and of the weights that it makes."""
        return prove(self.part(self.index, version), stage.layers.table.unit_bounds, stage.weights.dtype)

    def damaged_copies(self, version: int) -> list[int]:
        """Shards whose copy here is not what its owner announced; one that is not here at that version is not."""
        known = self.digests.get(version)
        whole = [shard for shard, copy in self.pool.copies.items() if version in copy.versions]
        return [shard for shard in whole if known is not None and self.digest(shard, version) != known[shard]]

    def rooms(self) -> list[Callable[[], object]]:
        """What uses memory for the first time that only the next step fills; ask before copies of this one are made."""
        return [self.optimizer.make_room, *self.pool.rooms()]

    def record(self, version: int, digests: Sequence[int]) -> None:
        """Keep the announced digests of the last versions."""
        self.digests[version] = tuple(digests)
        for old in sorted(self.digests)[:-3]:
            del self.digests[old]


def make_holding(
    *,
    config: Config,
    plan: Plan,
    number: int,
    worker_id: str,
    group: Group,
    stage: Stage,
    make: Make,
    schema: Schema,
    before: Holding | None = None,
) -> Holding:
    """Room for this worker's shard and copies in the layout of `plan`; still without content.

    Args:
        before: the holding that it follows, whose `reduced` is not needed any more.
    """
    layout = layout_of(config, stage, [(bucket.units, bucket.members) for bucket in plan.buckets], len(plan.worker_ids))
    index = plan.index_of(worker_id)
    decayed = [(start, stop) for start, stop, decay in stage.layers.table.decay_spans() if decay]
    mode = config.snapshot.mode

    def make_optimizer(shard: int) -> ShardedOptimizer:
        return ShardedOptimizer(make, layout.ranges(shard), decayed, schema)

    def make_copy(shard: int) -> Copy:
        if mode is SnapshotMode.GRADIENT:
            return ReplayCopy(make_optimizer(shard))
        return StateCopy(layout.ranges(shard), schema.kinds)

    stages = [0] * len(plan.worker_ids)
    for home, members in enumerate(plan.stages):
        for member in members:
            stages[member] = home
    pool = Pool(
        group,
        layout_epoch=number,
        holders=ring.holders(plan.domains, config.snapshot.copies, stages),
        make_copy=make_copy,
        mode=mode,
    )
    return Holding(
        number=number,
        index=index,
        layout=layout,
        optimizer=make_optimizer(index),
        pool=pool,
        reduced=_room(layout.size(index), stage.gradients.dtype, before),
    )


def _room(num_elements: int, dtype: torch.dtype, before: Holding | None) -> torch.Tensor:
    """Where a gradient arrives: where the last one did, if there is room."""
    memory = torch.empty(0, dtype=dtype)
    if before is not None and before.reduced.dtype == dtype:
        memory.set_(before.reduced.untyped_storage())
    if memory.numel() < num_elements:
        memory = allocate(num_elements + num_elements // SPARE, dtype)
    return memory[:num_elements]


def layout_of(config: Config, stage: Stage, buckets: Sequence[Bucket], num_shards: int) -> Layout:
    """The layout is a function of the model, the setting, and which units the members hold."""
    return cut(stage.layers.table.unit_sizes(), num_shards, config.parallelism.zero_layout, buckets=buckets)


def collect(tensor: torch.Tensor, ranges: Sequence[Range]) -> torch.Tensor:
    """The elements of a flat tensor in `ranges`, one behind the other; a view where they lie side by side."""
    pieces = [tensor[start:stop] for start, stop in ranges]
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(pieces) if pieces else tensor[:0]


def spread(values: torch.Tensor, ranges: Sequence[Range], out: torch.Tensor) -> None:
    """The inverse of `collect`; nothing is done where `values` lie in their place already."""
    at = 0
    for start, stop in ranges:
        if out[start:stop].data_ptr() != values[at : at + stop - start].data_ptr():
            out[start:stop] = values[at : at + stop - start]
        at += stop - start
