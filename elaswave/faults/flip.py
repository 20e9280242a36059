"""Flip one bit of what a worker holds: of its shard of the state, of a copy, or of the weights it computes with."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch

from elaswave.faults.scenario import Fault, Target
from elaswave.runtime.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Memory that can be hurt.

    Attributes:
        name: for people.
        shard: that it belongs to; None for weights.
        version: step after which its content was so.
        tensors: flat, by name.
    """

    name: str
    shard: int | None
    version: int
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One bit, chosen but not yet flipped.

    Attributes:
        region: where it lies.
        tensor: name of the tensor.
        element: of it.
        bit: of the element, counted from the lowest in memory.
    """

    region: Region
    tensor: str
    element: int
    bit: int

    def fields(self) -> dict[str, str | int | None]:
        """What the event tells."""
        return {
            "where": self.region.name,
            "shard": self.region.shard,
            "version": self.region.version,
            "tensor": self.tensor,
            "element": self.element,
            "bit": self.bit,
        }

    def do(self) -> None:
        """Flip it."""
        one = self.region.tensors[self.tensor][self.element : self.element + 1].view(torch.uint8)
        one[self.bit // 8] ^= 1 << self.bit % 8


def choose(job: Job, fault: Fault, salt: str) -> Flip | None:
    """The bit that a fault means; None when nothing of the kind is here yet.

    Args:
        job: of the victim.
        fault: what to do.
        salt: tells faults of one seed apart.

    Raises:
        PeerLost: a member was lost while a copy was still on its way here.
    """
    found = [region for region in regions(job, fault) if any(t.numel() for t in region.tensors.values())]
    if not found:
        return None
    random = Random(f"{fault.seed} {salt}")
    region = random.choice(found)
    name = random.choice([name for name, tensor in region.tensors.items() if tensor.numel()])
    tensor = region.tensors[name]
    return Flip(
        region=region,
        tensor=name,
        element=random.randrange(tensor.numel()),
        bit=random.randrange(8 * tensor.element_size()),
    )


def regions(job: Job, fault: Fault) -> list[Region]:
    """Everything that the fault may mean, at the newest version that is here."""
    match fault.target:
        case Target.SHARD:
            return _shards(job)
        case Target.COPY:
            return [region for region in _copies(job) if fault.shard in (None, region.shard)]
        case Target.WEIGHTS:
            return _weights(job)


def _shards(job: Job) -> list[Region]:
    for held in job.state.holdings():
        if held.optimizer.versions:
            state = held.optimizer.state(max(held.optimizer.versions))
            return [_region(f"shard {held.index}", held.index, state.version, state.tensors)]
    return []


def _copies(job: Job) -> list[Region]:
    """Of the newest layout that has any; one that is being received is waited for, so that a flip has one outcome."""
    for held in job.state.holdings():
        held.pool.finish()
        states = [(shard, copy.state(max(copy.versions))) for shard, copy in held.pool.copies.items() if copy.versions]
        if states:
            return [_region(f"copy of shard {shard}", shard, state.version, state.tensors) for shard, state in states]
    return []


def _weights(job: Job) -> list[Region]:
    weights = job.trainee.stage.weights
    newest = [max(versions.values(), default=-1) for versions in weights.versions]
    slot = newest.index(max(newest))
    return [
        _region(f"weights of unit {unit}", None, version, {"weights": values})
        for unit, version in weights.versions[slot].items()
        if (values := weights.unit(unit, slot)) is not None
    ]


def _region(name: str, shard: int | None, version: int | None, tensors: Mapping[str, torch.Tensor]) -> Region:
    assert version is not None
    return Region(name=f"{name} at step {version}", shard=shard, version=version, tensors=tensors)
