"""Everything a worker holds of the sharded state in one layout: its own shard, and copies of its neighbours'."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from elaswave.block import Slot
from elaswave.communicator.group import Group
from elaswave.config import Config, SnapshotMode
from elaswave.pipeline.stage import Stage
from elaswave.planner.plan import Plan
from elaswave.snapshot import ring
from elaswave.snapshot.copy import Copy, ReplayCopy, StateCopy
from elaswave.snapshot.pool import Pool
from elaswave.snapshot.verify import digest
from elaswave.zero.layout import Layout, Range, cut
from elaswave.zero.optimizer import ShardedOptimizer
from elaswave.zero.remap import Part
from elaswave.zero.schema import Make, Schema


@dataclass(slots=True, kw_only=True)
class Holding:
    """Own shard and copies in the layout of one view.

    Attributes:
        epoch: of the view for which the layout was made.
        index: of this worker's shard.
        reduced: where the summed gradient of the own shard arrives.
        digests: for each recent version the digest of every shard, as the owners announced them.
    """

    epoch: int
    index: int
    layout: Layout
    optimizer: ShardedOptimizer
    pool: Pool
    reduced: torch.Tensor
    digests: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def holdings(self) -> list[ring.Holding]:
        """Every whole shard that is here, own and copied."""
        own = [
            ring.Holding(
                layout_epoch=self.epoch,
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

    def record(self, version: int, digests: Sequence[int]) -> None:
        """Keep the announced digests of the last versions."""
        self.digests[version] = tuple(digests)
        for old in sorted(self.digests)[:-3]:
            del self.digests[old]


def make_holding(
    *, config: Config, plan: Plan, worker_id: str, group: Group, stage: Stage, make: Make, schema: Schema
) -> Holding:
    """Room for this worker's shard and copies in the layout of `plan`; still without content."""
    layout = layout_of(config, stage, len(plan.worker_ids))
    index = plan.index_of(worker_id)
    decayed = [(start, stop) for start, stop, decay in stage.decay_spans() if decay]
    mode = config.snapshot.mode

    def make_optimizer(shard: int) -> ShardedOptimizer:
        return ShardedOptimizer(make, layout.ranges(shard), decayed, schema)

    def make_copy(shard: int) -> Copy:
        if mode is SnapshotMode.GRADIENT:
            return ReplayCopy(make_optimizer(shard))
        return StateCopy(layout.ranges(shard), schema.kinds)

    pool = Pool(
        group,
        layout_epoch=plan.epoch,
        holders=ring.holders(plan.domains, config.snapshot.copies),
        make_copy=make_copy,
        mode=mode,
    )
    return Holding(
        epoch=plan.epoch,
        index=index,
        layout=layout,
        optimizer=make_optimizer(index),
        pool=pool,
        reduced=torch.empty(layout.size(index), dtype=stage.accumulator.buffer.dtype),
    )


def layout_of(config: Config, stage: Stage, num_shards: int) -> Layout:
    """The layout is a function of the model, the setting and the number of members."""
    return cut(stage.layer_sizes(), num_shards, config.parallelism.zero_layout)


def collect(tensor: torch.Tensor, ranges: Sequence[Range]) -> torch.Tensor:
    """The elements of a flat tensor in `ranges`, one behind the other."""
    pieces = [tensor[start:stop] for start, stop in ranges]
    return torch.cat(pieces) if pieces else tensor[:0].clone()
