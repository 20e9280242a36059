"""The weights that a worker computes with, twice: one version is in use while the next one arrives beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from elaswave.memory import allocate
from elaswave.pipeline.buckets import Buckets, Key

Digest = Callable[[Sequence[tuple[int, int]], Mapping[str, torch.Tensor]], int]
"""See `elaswave.snapshot.verify.digest`."""

SPARE = 4
"""Of the memory of a bucket, one part in so many is kept free for units that join it; pages not used cost nothing."""
WEIGHTS = "master"
"""Name of the weights in their digest, the same as that of the master weights they are made from."""


class Weights:
    """Weights in the dtype of the computation: flat per bucket in the slot that is filled next.

    In the slot in use, units of the layout before stay where they were; so a change of layout copies nothing.

    Attributes:
        buckets: what this worker holds.
        active: slot that the model computes with.
        versions: per slot and unit the step after which the weights were so; a unit that is not whole is absent.
    """

    def __init__(self, buckets: Buckets, dtype: torch.dtype) -> None:
        self.buckets, self.dtype, self.active = buckets, dtype, 0
        self.versions: list[dict[int, int]] = [{}, {}]
        self._rooms: list[dict[Key, torch.Tensor]] = [{}, {}]
        self._units: list[dict[int, torch.Tensor]] = [{}, {}]
        self._spare: list[torch.Tensor] = []

    @classmethod
    def carried_over(cls, before: "Weights", buckets: Buckets, version: int) -> "Weights":
        """The weights of a new layout, in the memory of the old one.

        Args:
            before: those of the old layout; not to be used any more.
            buckets: of the new layout.
            version: wanted; units that are not here at this version stay empty.
        """
        new = cls(buckets, before.dtype)
        new.active, new._rooms, new._spare = before.slot_of(version), before._rooms, before._spare
        for slot in range(2):
            for key in buckets.keys:
                kept = key in before._rooms[slot]
                for unit in key:
                    found = before.versions[slot].get(unit)
                    if found is not None and (kept or (slot == new.active and found == version)):
                        new._units[slot][unit], new.versions[slot][unit] = before._units[slot][unit], found
        return new

    def slot_of(self, version: int) -> int:
        """The slot in which most units are at this version, the active one on ties."""
        counts = [sum(found == version for found in versions.values()) for versions in self.versions]
        return self.active if counts[self.active] >= counts[1 - self.active] else 1 - self.active

    def flat(self, key: Key, slot: int) -> torch.Tensor:
        """All weights of a bucket, in a slot that `begin` has given up for them."""
        return self._rooms[slot][key][: self.buckets.size(key)]

    def unit(self, unit: int, slot: int | None = None) -> torch.Tensor | None:
        """The weights of a unit, flat, in the active slot by default; None where they are missing."""
        return self._units[self.active if slot is None else slot].get(unit)

    def parameter(self, index: int, slot: int) -> torch.Tensor | None:
        """A parameter in its own shape; None where it is missing."""
        parameter = self.buckets.table.parameters[index]
        flat = self.unit(parameter.unit, slot)
        if flat is None:
            return None
        start = parameter.start - self.buckets.table.unit_bounds[parameter.unit][0]
        return flat[start : start + parameter.stop - parameter.start].view(parameter.shape)

    def put(self, unit: int, values: torch.Tensor, version: int) -> None:
        """Have a unit in the active slot.

        Args:
            values: flat, of any float dtype; kept when it is the right one.
            version: step after which the weights were so.
        """
        self._units[self.active][unit] = values.to(self.dtype)
        self.versions[self.active][unit] = version

    def begin(self, keys: Iterable[Key]) -> int:
        """Give up what is in the other slot for the next version; returns the slot."""
        aside = 1 - self.active
        for key in keys:
            for unit in key:
                self.versions[aside].pop(unit, None)
        self._make_room()
        return aside

    def _make_room(self) -> None:
        """Let the units of the other slot lie one behind the other, in memory that is in use no more."""
        aside = 1 - self.active
        rooms, units = self._rooms[aside], self._units[aside]
        for key in [key for key in rooms if key not in self.buckets.keys]:
            self._spare.append(rooms.pop(key))
        for key in self.buckets.keys:
            if key not in rooms:
                rooms[key] = self._take(self.buckets.size(key))
            for unit in key:
                place = self.buckets.of_unit(unit)
                units[unit] = rooms[key][place.start : place.stop]

    def _take(self, num_elements: int) -> torch.Tensor:
        """The smallest memory with room for so many elements; with more room than they need when it is new."""
        fitting = [index for index, room in enumerate(self._spare) if room.numel() >= num_elements]
        if fitting:
            return self._spare.pop(min(fitting, key=lambda index: self._spare[index].numel()))
        return allocate(num_elements + num_elements // SPARE, self.dtype)

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
            if found == version and digest((bounds[unit],), {WEIGHTS: self._units[slot][unit]}) != truth[unit]
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
