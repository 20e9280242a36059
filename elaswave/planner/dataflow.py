"""Axis 1, dataflow: share the micro-batches of a step over the live workers; global batch unchanged.

ElasWave, https://arxiv.org/abs/2510.00606.
"""

from collections.abc import Sequence


def share(num_micro_batches: int, capacities: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Give every micro-batch id to exactly one worker, so that the slowest finishes as early as possible.

    Args:
        num_micro_batches: ids 0 .. num_micro_batches - 1 exist in every step.
        capacities: micro-batches per second of each worker; equal numbers for equal workers, 0 for none.

    Returns:
        Per worker a contiguous run of ids, in order of worker.
    """
    counts = _counts(num_micro_batches, capacities)
    shares, start = [], 0
    for count in counts:
        shares.append(tuple(range(start, start + count)))
        start += count
    return tuple(shares)


def _counts(total: int, capacities: Sequence[float]) -> list[int]:
    """Integers that add up to `total` with the smallest max(count / capacity), lower indices first on ties."""
    if not any(capacity > 0 for capacity in capacities):
        raise ValueError("no worker has capacity")
    whole = sum(capacities)
    counts = [int(total * capacity / whole) for capacity in capacities]
    for _ in range(total - sum(counts)):
        usable = (i for i, capacity in enumerate(capacities) if capacity > 0)
        first = min(usable, key=lambda i: ((counts[i] + 1) / capacities[i], i))
        counts[first] += 1
    return counts


def top_up(num_micro_batches: int, done: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Share what nobody has computed, so that all members have done equally much in the end.

    Args:
        num_micro_batches: of the whole step.
        done: per member the ids whose contribution it still holds.

    Returns:
        Per member the ids to compute now.

    Raises:
        ValueError: two members hold the same contribution.
    """
    held = [i for ids in done for i in ids]
    if len(set(held)) != len(held):
        raise ValueError(f"some micro-batches are held twice: {sorted(held)}")
    load = [len(ids) for ids in done]
    shares: list[list[int]] = [[] for _ in done]
    for micro_batch in sorted(set(range(num_micro_batches)) - set(held)):
        member = min(range(len(done)), key=lambda i: (load[i], i))
        shares[member].append(micro_batch)
        load[member] += 1
    return tuple(tuple(ids) for ids in shares)
