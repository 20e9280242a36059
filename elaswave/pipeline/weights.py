"""The weights that a worker computes with, twice: one version is in use while the next one arrives beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from elaswave.memory import allocate
from elaswave.pipeline.buckets import Buckets, Key

Digest = Callable[[Sequence[tuple[int, int]], Mapping[str, torch.Tensor]], int]
"""See `elaswave.snapshot.verify.digest`."""

WEIGHTS = "master"
"""Name of the weights in their digest, the same as that of the master weights they are made from."""


class Weights:
    """Flat weights per bucket, in the dtype of the computation.

    Attributes:
        buckets: what this worker holds.
        active: slot that the model computes with.
        versions: per slot and unit the step after which the weights were so; a unit that is not whole is absent.
    """

    def __init__(self, buckets: Buckets, dtype: torch.dtype) -> None:
        self.buckets, self.dtype, self.active = buckets, dtype, 0
        self._flat: list[dict[Key, torch.Tensor]] = [{}, {}]
        self.versions: list[dict[int, int]] = [{}, {}]
        for flat in self._flat:
            flat.update((key, allocate(buckets.size(key), dtype)) for key in buckets.keys)

    @classmethod
    def carried_over(cls, before: "Weights", buckets: Buckets, version: int) -> "Weights":
        """The weights of a new layout: equal buckets stay where they are, units that are held again are copied.

        Args:
            before: those of the old layout; buckets that stay are shared with it.
            buckets: of the new layout.
            version: wanted; units that are not here at this version stay empty.
        """
        new = cls.__new__(cls)
        new.buckets, new.dtype = buckets, before.dtype
        new.active = before.slot_of(version)
        new._flat, new.versions = [{}, {}], [{}, {}]
        for key in buckets.keys:
            kept = key in before.buckets.keys
            for slot in range(2):
                new._flat[slot][key] = before._flat[slot][key] if kept else allocate(buckets.size(key), before.dtype)
                if kept:
                    new.versions[slot].update((u, before.versions[slot][u]) for u in key if u in before.versions[slot])
            for unit in () if kept else key:
                if before.versions[new.active].get(unit) == version:
                    new.unit(unit).copy_(before.unit(unit, new.active))
                    new.versions[new.active][unit] = version
        return new

    def slot_of(self, version: int) -> int:
        """The slot in which most units are at this version, the active one on ties."""
        counts = [sum(found == version for found in versions.values()) for versions in self.versions]
        return self.active if counts[self.active] >= counts[1 - self.active] else 1 - self.active

    def flat(self, key: Key, slot: int | None = None) -> torch.Tensor:
        """All weights of a bucket, in the active slot by default."""
        return self._flat[self.active if slot is None else slot][key]

    def unit(self, unit: int, slot: int | None = None) -> torch.Tensor:
        """The weights of a unit, flat."""
        place = self.buckets.of_unit(unit)
        return self.flat(place.bucket, slot)[place.start : place.stop]

    def parameter(self, index: int, slot: int) -> torch.Tensor:
        """A parameter in its own shape."""
        place = self.buckets.of_parameter(index)
        return self.flat(place.bucket, slot)[place.start : place.stop].view(self.buckets.table.parameters[index].shape)

    def put(self, unit: int, values: torch.Tensor, version: int) -> None:
        """Fill a unit of the active slot.

        Args:
            values: flat, of any float dtype.
            version: step after which the weights were so.
        """
        self.versions[self.active].pop(unit, None)
        self.unit(unit).copy_(values)
        self.versions[self.active][unit] = version

    def begin(self, keys: Iterable[Key]) -> int:
        """Give up what is in the other slot for the next version; returns the slot."""
        aside = 1 - self.active
        for key in keys:
            for unit in key:
                self.versions[aside].pop(unit, None)
        return aside

    def filled(self, key: Key, slot: int, version: int) -> None:
        """Declare a bucket whole."""
        self.versions[slot].update((unit, version) for unit in key)

    def damaged(self, version: int, truth: Sequence[int], digest: Digest) -> list[int]:
        """Units that are here at a version and are not what they should be.

        Args:
            version: of which the slot is looked at that has most of it.
            truth: per unit the digest that its weights must have.
            digest: see `Digest`.
        """
        slot, bounds = self.slot_of(version), self.buckets.table.unit_bounds
        return [
            unit
            for unit, found in self.versions[slot].items()
            if found == version and digest((bounds[unit],), {WEIGHTS: self.unit(unit, slot)}) != truth[unit]
        ]

    def give_up(self, units: Iterable[int], version: int) -> None:
        """These are not whole at this version."""
        here = self.versions[self.slot_of(version)]
        for unit in units:
            here.pop(unit, None)

    def lacking(self, version: int) -> list[int]:
        """Units with elements that are not here at this version in the active slot, ascending."""
        bounds, here = self.buckets.table.unit_bounds, self.versions[self.active]
        return [u for u in self.buckets.units if bounds[u][0] < bounds[u][1] and here.get(u) != version]
