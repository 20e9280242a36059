"""Where the gradients of one micro-batch's pass through some layers go: each to its place in the sums."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from elaswave.errors import NumericsError
from elaswave.pipeline.buckets import Key, Place
from elaswave.pipeline.gradients import Accumulator


@dataclass(frozen=True, slots=True)
class Target:
    """Where the gradient of a parameter is summed.

    Attributes:
        name: of the parameter.
        place: in the buffer of its bucket.
    """

    name: str
    place: Place


class Sums:
    """Takes gradients of one micro-batch; those of parameters without a target are not wanted.

    Several gradients of one parameter are added one by one, so that it does not matter which of them come together.

    Args:
        sums: by bucket.
        targets: by parameter.
        micro_batch: of which the gradients are.
    """

    def __init__(
        self, sums: Mapping[Key, Accumulator], targets: Mapping[torch.Tensor, Target], micro_batch: int
    ) -> None:
        self._sums, self._targets, self._micro_batch = sums, targets, micro_batch

    def add(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add a gradient.

        Raises:
            NumericsError: it is too large for exact sums; names the parameter, the micro-batch and the value.
        """
        target = self._targets.get(parameter)
        if target is None:
            return
        try:
            self._sums[target.place.bucket].add(gradient.reshape(-1), self._micro_batch, target.place.start)
        except NumericsError as error:
            raise NumericsError(f"{target.name}: {error}") from error

    def add_product(self, parameter: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Add `rows.t() @ columns`, rounded to the dtype of the parameter; raises as `add` does."""
        target = self._targets.get(parameter)
        if target is None:
            return
        accumulator, start = self._sums[target.place.bucket], target.place.start
        try:
            accumulator.add_product(rows, columns, parameter.dtype, self._micro_batch, start)
        except NumericsError as error:
            raise NumericsError(f"{target.name}: {error}") from error
