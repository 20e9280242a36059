"""A neighbour's shard as this worker keeps it: always one whole version, and the next one on its way in.

Two ways to follow the owner from step to step: receive its new state, or receive the gradient of the step and take
the same step, which gives the same bits for a third of the bytes (AdamW) and the price of an optimizer step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from elaswave.block import Block, Scalars, Slot


class Replica(Protocol):
    """What can replay steps of an optimizer shard; `zero.optimizer.ShardedOptimizer` can."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def num_elements(self) -> int: ...

    @property
    def versions(self) -> tuple[int, ...]: ...

    def state(self, version: int | None = None) -> Slot: ...

    def staging(self) -> Slot: ...

    def make_room(self) -> None: ...

    def adopt(self, version: int, scalars: Scalars) -> None: ...

    def step(self, gradient: torch.Tensor, lr: float, scale: float = 1.0) -> Slot: ...

    def commit(self) -> None: ...


class Copy(ABC):
    """A copy of one shard.

    What is received goes into memory that no whole version uses; `accept_...` then makes it a version. If that never
    happens, the version before is still there.

    Attributes:
        ranges: global element ranges of the shard.
    """

    ranges: tuple[tuple[int, int], ...]

    @property
    @abstractmethod
    def versions(self) -> tuple[int, ...]:
        """Versions that are whole, the newest first."""

    @abstractmethod
    def state(self, version: int) -> Slot:
        """Tensors and scalars of a whole version.

        Raises:
            KeyError: that version is not here.
        """

    @abstractmethod
    def rooms(self) -> list[Callable[[], object]]:
        """What uses memory of a new copy for the first time that its first version does not fill."""

    @abstractmethod
    def state_target(self) -> torch.Tensor:
        """Where a whole state is to be received, (bytes,) uint8."""

    @abstractmethod
    def accept_state(self, version: int, scalars: Scalars) -> None:
        """All bytes of a whole state have arrived."""

    @abstractmethod
    def step_target(self) -> torch.Tensor:
        """Where what follows from one step is to be received; flat."""

    @abstractmethod
    def accept_step(self, version: int, scalars: Scalars, lr: float) -> None:
        """All bytes of a step have arrived."""


class StateCopy(Copy):
    """Receives master weights and optimizer state at every step.

    Args:
        ranges: global element ranges of the shard.
        kinds: dtype of each tensor of the shard.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], kinds: Mapping[str, torch.dtype]) -> None:
        self.ranges = tuple(ranges)
        num_elements = sum(stop - start for start, stop in ranges)
        self._whole, self._building = Slot(kinds, num_elements), Slot(kinds, num_elements)

    @property
    def versions(self) -> tuple[int, ...]:
        both = (self._whole.version, self._building.version)
        return tuple(version for version in both if version is not None)

    def state(self, version: int) -> Slot:
        for slot in (self._whole, self._building):
            if slot.version == version:
                return slot
        raise KeyError(f"version {version} is not here; {self.versions} are")

    def rooms(self) -> list[Callable[[], object]]:
        return [self._whole.raw.zero_]

    def state_target(self) -> torch.Tensor:
        self._building.version = None
        return self._building.raw

    def accept_state(self, version: int, scalars: Scalars) -> None:
        self._building.version, self._building.scalars = version, dict(scalars)
        self._whole, self._building = self._building, self._whole

    def step_target(self) -> torch.Tensor:
        return self.state_target()

    def accept_step(self, version: int, scalars: Scalars, lr: float) -> None:
        self.accept_state(version, scalars)


class ReplayCopy(Copy):
    """Receives the gradient of every step and takes the step itself.

    Args:
        replica: a sharded optimizer over the neighbour's ranges.
    """

    def __init__(self, replica: Replica) -> None:
        self.ranges = replica.ranges
        self._replica = replica
        self._gradient = Block({"gradient": torch.float32}, replica.num_elements).tensors["gradient"]

    @property
    def versions(self) -> tuple[int, ...]:
        return self._replica.versions

    def state(self, version: int) -> Slot:
        return self._replica.state(version)

    def rooms(self) -> list[Callable[[], object]]:
        return [self._gradient.zero_, self._replica.make_room]

    def state_target(self) -> torch.Tensor:
        return self._replica.staging().raw

    def accept_state(self, version: int, scalars: Scalars) -> None:
        self._replica.adopt(version, scalars)

    def step_target(self) -> torch.Tensor:
        return self._gradient

    def accept_step(self, version: int, scalars: Scalars, lr: float) -> None:
        self._replica.step(self._gradient, lr)
        self._replica.commit()
        if self._replica.versions[0] != version:
            raise ValueError(f"a copy at step {self._replica.versions[0]} cannot follow its owner to {version}")
