"""Copies follow their owners bit by bit, and an interrupted ship never spoils the version before."""

import functools

import pytest
import torch
from support.fake_group import FakeNetwork

from elaswave.config import SnapshotMode
from elaswave.errors import PeerLost
from elaswave.snapshot.copy import ReplayCopy, StateCopy
from elaswave.snapshot.pool import Pool
from elaswave.snapshot.ring import Decision, Holding, choose, holders
from elaswave.snapshot.verify import combine, digest
from elaswave.zero.layout import cut
from elaswave.zero.optimizer import ShardedOptimizer
from elaswave.zero.schema import discover

LAYOUT = cut([1000, 300, 2], 3, chunk=64)
SIZE = LAYOUT.num_elements
DECAYED = ((0, 500), (1000, 1100))
MAKE = functools.partial(torch.optim.AdamW, weight_decay=0.1)
SCHEMA = discover(MAKE)
MODES = list(SnapshotMode)


def pick(flat: torch.Tensor, ranges) -> torch.Tensor:
    return torch.cat([flat[a:b] for a, b in ranges] or [flat[:0]])


class Members:
    """Three workers with their optimizers and pools."""

    def __init__(self, mode: SnapshotMode, copies: int = 2, layout=LAYOUT) -> None:
        self.layout, self.mode = layout, mode
        self.optimizers = [self.optimizer(shard) for shard in range(layout.num_shards)]
        for optimizer in self.optimizers:
            optimizer.initialise(pick(torch.linspace(-1, 1, SIZE), optimizer.ranges))
        self.connect(copies)

    def connect(self, copies: int = 2) -> None:
        """New links and empty pools, as after a change of layout."""
        self.network = FakeNetwork([f"w{i}" for i in range(self.layout.num_shards)])
        table = holders(["one"] * self.layout.num_shards, copies)
        self.pools = [
            Pool(group, layout_epoch=4, holders=table, make_copy=self.make_copy, mode=self.mode)
            for group in self.network.groups
        ]

    def optimizer(self, shard: int) -> ShardedOptimizer:
        return ShardedOptimizer(MAKE, self.layout.ranges(shard), DECAYED, SCHEMA)

    def make_copy(self, shard: int):
        if self.mode is SnapshotMode.GRADIENT:
            return ReplayCopy(self.optimizer(shard))
        return StateCopy(self.layout.ranges(shard), SCHEMA.kinds)

    def establish(self) -> None:
        for pool, optimizer in zip(self.pools, self.optimizers, strict=True):
            pool.establish(optimizer.state())
        for pool in self.pools:
            pool.finish()

    def step(self, version: int) -> None:
        """Step, commit and start to ship."""
        flat = torch.randn(SIZE, generator=torch.Generator().manual_seed(version))
        for pool, optimizer in zip(self.pools, self.optimizers, strict=True):
            optimizer.step(pick(flat, optimizer.ranges), 0.01 / version, 0.5)
            optimizer.commit()
            pool.start(optimizer.state(), gradient=optimizer.gradient, lr=0.01 / version)

    def finish(self) -> None:
        for pool in self.pools:
            pool.finish()

    def offer(self, member: int) -> list[Holding]:
        """Everything whole that a member has."""
        owned = [
            Holding(layout_epoch=4, num_shards=3, shard=member, version=version, owner=True)
            for version in self.optimizers[member].versions
        ]
        return [*owned, *self.pools[member].holdings()]

    def check(self, version: int) -> None:
        for pool in self.pools:
            for shard, copy in pool.copies.items():
                own, kept = self.optimizers[shard].state(version), copy.state(version)
                assert torch.equal(own.raw, kept.raw)
                assert own.scalars == kept.scalars


@pytest.mark.parametrize("mode", MODES)
def test_copies_have_the_bits_of_their_owners_at_every_step(mode):
    members = Members(mode)
    members.establish()
    members.check(0)
    for version in range(1, 6):
        members.step(version)
        members.finish()
        members.check(version)
        assert all(copy.versions[0] == version for pool in members.pools for copy in pool.copies.values())


@pytest.mark.parametrize("mode", MODES)
def test_copies_may_begin_in_the_middle_of_a_run(mode):
    members = Members(mode)
    for version in (1, 2):
        members.step(version)
        for pool in members.pools:
            pool.settle()
    members.connect()
    members.establish()
    members.check(2)
    members.step(3)
    members.finish()
    members.check(3)


@pytest.mark.parametrize("mode", MODES)
def test_the_completed_version_stays_whole_while_the_next_is_on_its_way(mode):
    members = Members(mode)
    members.establish()
    members.step(1)
    members.finish()
    members.step(2)
    members.check(1)


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_ship_leaves_the_version_before(mode):
    members = Members(mode)
    members.establish()
    members.step(1)
    members.finish()
    members.step(2)
    members.network.lost = {0}
    for pool in members.pools[1:]:
        with pytest.raises(PeerLost):
            pool.finish()
    for pool in members.pools[1:]:
        assert pool.copies[0].versions[0] == 1
        assert torch.equal(pool.copies[0].state(1).raw, members.optimizers[0].state(1).raw)
        other = next(shard for shard in pool.copies if shard != 0)
        assert pool.copies[other].versions[0] == 2
    assert choose({f"w{i}": members.offer(i) for i in (1, 2)}).version == 1


@pytest.mark.parametrize("mode", MODES)
def test_at_every_instant_some_version_survives_the_loss_of_any_member(mode):
    members = Members(mode, copies=1)

    def check() -> None:
        for lost in range(3):
            alive = [i for i in range(3) if i != lost]
            assert isinstance(choose({f"w{i}": members.offer(i) for i in alive}), Decision)

    members.establish()
    check()
    for version in (1, 2, 3):
        members.step(version)
        check()
        members.finish()
        check()


def test_gradients_are_a_third_of_the_bytes():
    sent = {}
    for mode in MODES:
        members = Members(mode)
        members.establish()
        before = members.network.bytes
        members.step(1)
        members.finish()
        sent[mode] = members.network.bytes - before
    assert sent[SnapshotMode.GRADIENT] == 2 * 4 * SIZE
    assert 3 * sent[SnapshotMode.GRADIENT] <= sent[SnapshotMode.STATE] < 3.5 * sent[SnapshotMode.GRADIENT]


def test_digests_of_copies_and_owners_add_up_to_the_same_whole():
    members = Members(SnapshotMode.GRADIENT)
    members.establish()
    members.step(1)
    members.finish()
    owners = [digest(o.ranges, o.state(1).tensors) for o in members.optimizers]
    copies = {}
    for pool in members.pools:
        for shard, copy in pool.copies.items():
            copies[shard] = digest(copy.ranges, copy.state(1).tensors)
    assert [copies[shard] for shard in range(3)] == owners
    assert combine(owners) == combine(copies.values())


def test_empty_shards_travel_too():
    members = Members(SnapshotMode.STATE, layout=cut([40], 3, chunk=64))
    assert 0 in [members.layout.size(shard) for shard in range(3)]
    members.establish()
    members.check(0)


def test_tickets_tell_when_all_is_done():
    members = Members(SnapshotMode.STATE)
    tickets = [p.establish(o.state()) for p, o in zip(members.pools, members.optimizers, strict=True)]
    assert not any(ticket.done for ticket in tickets)
    members.network.progress()
    assert all(ticket.done for ticket in tickets)
    with pytest.raises(ValueError, match="still being shipped"):
        members.pools[0].establish(members.optimizers[0].state())
