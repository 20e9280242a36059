"""Graph planner: which layers each pipeline stage computes, as whole cuts or as cuts that differ per micro-batch.

Cuts are P + 1 bounds for P stages: stage p computes layers [cuts[p], cuts[p + 1]).
"""

from collections.abc import Sequence

import numpy as np

from elaswave.errors import ConfigError


def cut(
    costs: Sequence[float],
    capacities: Sequence[float],
    *,
    memory: Sequence[float] | None = None,
    limits: Sequence[float] | None = None,
    boundaries: Sequence[int] = (),
) -> tuple[int, ...]:
    """Contiguous stages with the least maximum of cost / capacity; exact, O(P L^2).

    Of equally good cuts the last bound is leftmost, then the one before it, and so on. A stage without capacity gets
    no layer; any other gets one at least, unless there are fewer layers than such stages.

    Args:
        costs: of each of L layers, at any scale.
        capacities: of each of P stages; 0 where nobody is left.
        memory: bytes of each layer.
        limits: bytes that each stage can hold; needs `memory`.
        boundaries: layers before which a stage may begin; empty for any.

    Raises:
        ConfigError: no cut fits; names the layer or the stages in the way.
    """
    _check(costs, capacities)
    if limits is not None and memory is None:
        raise ConfigError("limits", tuple(limits), "need memory: the bytes of each layer")
    num_layers, bounds = len(costs), np.arange(len(costs) + 1)
    total, held = _prefix(costs), _prefix(memory if memory is not None else [0.0] * num_layers)
    room = np.asarray(limits if limits is not None else [np.inf] * len(capacities), dtype=np.float64)
    if len(held) != num_layers + 1 or len(room) != len(capacities):
        raise ConfigError("memory, limits", (memory, limits), "give one for each layer, and one for each stage")
    allowed = np.isin(bounds, [0, num_layers, *boundaries]) if boundaries else np.ones(num_layers + 1, dtype=bool)
    may_be_empty = num_layers < sum(capacity > 0 for capacity in capacities)
    width = bounds[:, None] - bounds  # [stop, start], so that the search for a start runs along rows
    cost, size = total[:, None] - total, held[:, None] - held
    legal = (width >= (0 if may_be_empty else 1)) & allowed[:, None]
    loads = {limit: np.where(legal & (size <= limit), cost, np.inf) for limit in set(room.tolist())}
    best = np.where(bounds == 0, 0.0, np.inf)
    reach = np.empty_like(cost)
    choices: list[np.ndarray] = []
    for capacity, limit in zip(capacities, room.tolist(), strict=True):
        if capacity > 0:
            np.maximum(np.divide(loads[limit], capacity, out=reach), best, out=reach)
            choices.append(reach.argmin(axis=1))
            best = reach[bounds, choices[-1]]
        else:
            choices.append(bounds)
    if not np.isfinite(best[-1]):
        raise _misfit(capacities, memory, room)
    cuts = [num_layers]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return tuple(reversed(cuts))


def fluid(costs: Sequence[float], capacities: Sequence[float], num_micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """Cuts of each micro-batch, whose mean is the fractional cut in proportion to capacity within 1 / micro-batches.

    Each bound takes only the floor or the ceiling of its ideal. Those that take the ceiling are spread evenly (bit
    reversal), and are the same ones for every bound as far as possible, so that bounds within one layer never cross.

    Args:
        costs: of each of L layers, all positive.
        capacities: of each of P stages; 0 where nobody is left.
        num_micro_batches: of a step.

    Raises:
        ConfigError: no stage has capacity, or a cost is not positive.
    """
    low, num_high = fractions(costs, capacities, num_micro_batches)
    digits = max(num_micro_batches - 1, 1).bit_length()
    order = sorted(range(num_micro_batches), key=lambda i: int(f"{i:0{digits}b}"[::-1], 2))
    rank = {micro_batch: place for place, micro_batch in enumerate(order)}
    return tuple(
        tuple(int(bound) for bound in low + (rank[micro_batch] < num_high)) for micro_batch in range(num_micro_batches)
    )


def fractions(
    costs: Sequence[float], capacities: Sequence[float], num_micro_batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per bound the floor of its ideal, and for how many micro-batches it is one more; (P + 1,) int64 each.

    Raises:
        ConfigError: see `fluid`.
    """
    _check(costs, capacities)
    if min(costs) <= 0:
        raise ConfigError("costs", tuple(costs), "a fractional cut needs a positive cost of every layer")
    total, cumulated = _prefix(costs), _prefix(capacities)
    ideal = np.interp(cumulated / cumulated[-1] * total[-1], total, np.arange(len(total), dtype=np.float64))
    low = np.floor(ideal).astype(np.int64)
    return low, np.rint((ideal - low) * num_micro_batches).astype(np.int64)


def _prefix(values: Sequence[float]) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])


def _check(costs: Sequence[float], capacities: Sequence[float]) -> None:
    if not len(costs) or min(costs) < 0:
        raise ConfigError("costs", tuple(costs), "give one cost that is not negative for each layer")
    if not len(capacities) or min(capacities) < 0 or max(capacities) <= 0:
        raise ConfigError("capacities", tuple(capacities), "at least one stage needs a capacity, and none a negative")


def _misfit(capacities: Sequence[float], memory: Sequence[float] | None, limits: np.ndarray) -> ConfigError:
    """Say what stands in the way: one layer that fits nowhere, or all of them together."""
    room = [float(limit) for limit, capacity in zip(limits, capacities, strict=True) if capacity > 0]
    for layer, size in enumerate(memory or ()):
        if size > max(room):
            return ConfigError("limits", tuple(room), f"layer {layer} of {size:.0f} bytes fits in no stage")
    return ConfigError(
        "limits", tuple(room), f"the layers of {sum(memory or ()):.0f} bytes fit in no cut; use more stages or bounds"
    )
