"""Where the elements of every unit lie in the flat buffers of one worker: one buffer per bucket that it holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from elaswave.pipeline.table import Table

Key = tuple[int, ...]
"""Units of a bucket, ascending; names its buffers, whoever shares them."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of one bucket's buffer.

    Attributes:
        bucket: whose buffer.
        start: first element.
        stop: behind the last element.
    """

    bucket: Key
    start: int
    stop: int


class Buckets:
    """The buckets that one worker holds.

    Attributes:
        keys: in order of the plan.
        units: of all buckets, ascending.
    """

    def __init__(self, table: Table, keys: Sequence[Key]) -> None:
        self.table, self.keys = table, tuple(keys)
        self.units = tuple(sorted(unit for key in keys for unit in key))
        self._sizes: dict[Key, int] = {}
        self._units: dict[int, Place] = {}
        for key in keys:
            at = 0
            for unit in key:
                start, stop = table.unit_bounds[unit]
                self._units[unit] = Place(key, at, at + stop - start)
                at += stop - start
            self._sizes[key] = at

    def size(self, key: Key) -> int:
        """Elements of a bucket."""
        return self._sizes[key]

    def of_unit(self, unit: int) -> Place:
        """Where a unit lies.

        Raises:
            KeyError: this worker does not hold it.
        """
        return self._units[unit]

    def of_parameter(self, index: int) -> Place:
        """Where a parameter lies."""
        parameter = self.table.parameters[index]
        unit = self._units[parameter.unit]
        start = unit.start + parameter.start - self.table.unit_bounds[parameter.unit][0]
        return Place(unit.bucket, start, start + parameter.stop - parameter.start)
