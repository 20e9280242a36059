"""What the planner knows of a model: what its layers cost, and which parameters they use."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A model of L layers, as numbers that are equal on every worker.

    A unit is a run of parameters that is never split over holders: unit l < L is what belongs to layer l alone and may
    be empty; the units behind are weights that several layers share, one for each tie.

    Attributes:
        costs: of the forward of each layer, at any scale, all positive.
        unit_elements: elements of each unit.
        users: for each unit the layers that use it, ascending; (l,) for l < L.

    Raises:
        ValueError: these are not the numbers of a model.
    """

    costs: tuple[float, ...]
    unit_elements: tuple[int, ...]
    users: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.costs or not all(math.isfinite(cost) and cost > 0 for cost in self.costs):
            raise ValueError(f"costs = {self.costs}: give a positive one for each layer")
        if len(self.users) != len(self.unit_elements) or any(size < 0 for size in self.unit_elements):
            raise ValueError(f"{len(self.unit_elements)} unit_elements and {len(self.users)} users: give both per unit")
        alone = tuple((layer,) for layer in range(self.num_layers))
        if self.users[: self.num_layers] != alone:
            raise ValueError(f"users = {self.users}: the first {self.num_layers} units are of one layer each, in order")
        for layers in self.users[self.num_layers :]:
            if not layers or list(layers) != sorted(set(layers) & set(range(self.num_layers))):
                raise ValueError(f"users = {self.users}: {layers} are not ascending layers below {self.num_layers}")

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.costs)


WHOLE = Profile(costs=(1.0,), unit_elements=(0,), users=((0,),))
"""A model about which nothing is known: one layer, which cannot be cut."""
