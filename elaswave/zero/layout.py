"""Cut optimizer state into shards, and list what must travel when the cut changes.

Interleaved, as in ElasWave (https://arxiv.org/abs/2510.00606): every layer is cut on its own, so that a layer
changes hands in disjoint rank-to-rank transfers and nothing else moves. Contiguous, as in ZeRO
(https://arxiv.org/abs/1910.02054): one flat buffer of all layers is cut. In both, shard i lies before shard
i + 1 inside every layer, so cuts for nearby numbers of shards overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elaswave.config import ZeroLayout

CHUNK = 256

Range = tuple[int, int]
Ranges = tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A cut of all layers; a pure function of the first four attributes.

    Attributes:
        layer_sizes: elements of each layer, in flat order.
        num_shards: how many ways.
        kind: what is cut, each layer or the whole.
        chunk: shards begin at multiples of it inside a layer.
        shards: per shard its (start, stop) ranges in global flat order, ascending, none empty, each inside one layer.
    """

    layer_sizes: tuple[int, ...]
    num_shards: int
    kind: ZeroLayout
    chunk: int
    shards: tuple[Ranges, ...]

    @property
    def num_elements(self) -> int:
        """Elements of all layers."""
        return sum(self.layer_sizes)

    def ranges(self, shard: int) -> Ranges:
        """(start, stop) element ranges of a shard in global flat order."""
        return self.shards[shard]

    def size(self, shard: int) -> int:
        """Elements of a shard."""
        return count(self.shards[shard])


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A range of global flat elements that one worker gives to another.

    Attributes:
        source: worker that holds it now, as owner or in a copy.
        destination: worker that owns it next; the same as `source` when nothing travels.
        shard: old shard that contains the range.
        start: first element.
        stop: behind the last element.
    """

    source: str
    destination: str
    shard: int
    start: int
    stop: int


def count(ranges: Sequence[Range]) -> int:
    """Elements in `ranges`."""
    return sum(stop - start for start, stop in ranges)


def intersect(ranges: Sequence[Range], spans: Sequence[Range]) -> Ranges:
    """What two ascending sequences of disjoint ranges have in common, cut wherever either is cut."""
    common, i, j = [], 0, 0
    while i < len(ranges) and j < len(spans):
        start, stop = max(ranges[i][0], spans[j][0]), min(ranges[i][1], spans[j][1])
        if start < stop:
            common.append((start, stop))
        if ranges[i][1] < spans[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def cut(
    layer_sizes: Sequence[int], num_shards: int, kind: ZeroLayout | str = ZeroLayout.INTERLEAVED, chunk: int = CHUNK
) -> Layout:
    """Give every element to exactly one shard; sizes differ from the mean by less than two chunks.

    Args:
        layer_sizes: elements of each layer; zero is allowed.
        num_shards: how many ways; may exceed the number of chunks, some shards are then empty.
        kind: `interleaved` or `contiguous`.
        chunk: elements; every boundary is a multiple of it, counted from the start of its layer, or a layer's end.
    """
    if num_shards < 1 or chunk < 1 or any(size < 0 for size in layer_sizes):
        raise ValueError(f"cannot cut layers {tuple(layer_sizes)} into {num_shards} shards by chunks of {chunk}")
    sizes = np.asarray(layer_sizes, np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    kind = ZeroLayout(kind)
    bounds = (_interleaved if kind is ZeroLayout.INTERLEAVED else _contiguous)(sizes, offsets, num_shards, chunk)
    return Layout(
        layer_sizes=tuple(sizes.tolist()),
        num_shards=num_shards,
        kind=kind,
        chunk=chunk,
        shards=tuple(_column(bounds, shard) for shard in range(num_shards)),
    )


def _column(bounds: np.ndarray, shard: int) -> Ranges:
    """The non-empty ranges of a shard, one per layer at most."""
    starts, stops = bounds[:, shard], bounds[:, shard + 1]
    some = stops > starts
    return tuple(zip(starts[some].tolist(), stops[some].tolist(), strict=True))


def _interleaved(sizes: np.ndarray, offsets: np.ndarray, num_shards: int, chunk: int) -> np.ndarray:
    """Boundaries (layers, num_shards + 1), global.

    What rounding to chunks gives to a shard in one layer too much or too little is made up for in the next, so
    the error of a whole shard does not grow with the number of layers.
    """
    bounds = np.empty((len(sizes), num_shards + 1), np.int64)
    index = np.arange(num_shards + 1, dtype=np.int64)
    before = np.zeros(num_shards + 1, np.int64)  # elements in front of each boundary, in the layers done so far
    for layer, size in enumerate(sizes.tolist()):
        wanted = index * offsets[layer + 1] - num_shards * before  # in units of 1 / num_shards element
        rounded = (2 * wanted + num_shards * chunk) // (2 * num_shards * chunk) * chunk
        rounded = np.maximum.accumulate(np.clip(rounded, 0, size))
        rounded[0], rounded[-1] = 0, size
        before += rounded
        bounds[layer] = offsets[layer] + rounded
    return bounds


def _contiguous(sizes: np.ndarray, offsets: np.ndarray, num_shards: int, chunk: int) -> np.ndarray:
    """Boundaries (layers, num_shards + 1), global: equal cuts of the whole, each moved to the nearest chunk."""
    wanted = np.arange(num_shards + 1, dtype=np.int64) * offsets[-1] // num_shards
    layer = np.clip(np.searchsorted(offsets, wanted, side="right") - 1, 0, max(len(sizes) - 1, 0))
    if not len(sizes):
        return np.empty((0, num_shards + 1), np.int64)
    inside = (2 * (wanted - offsets[layer]) + chunk) // (2 * chunk) * chunk
    points = offsets[layer] + np.minimum(inside, sizes[layer])
    points[-1] = offsets[-1]
    return np.clip(points[None, :], offsets[:-1, None], offsets[1:, None])


def route(old: Layout, new: Layout, holders: Sequence[Sequence[str]], owners: Sequence[str]) -> tuple[Transfer, ...]:
    """Where every element of every new shard comes from, ascending by element; adjacent ranges are merged.

    A new owner that holds an element already, as owner or in a copy, is its own source. Otherwise the holder that
    has least to send is chosen, larger parts first.

    Args:
        old: the cut in which the state is held.
        new: the cut to reach; of the same layers.
        holders: per old shard the workers that hold it, preferred ones first.
        owners: per new shard its owner.

    Raises:
        ValueError: the layouts are of different layers, or a shard that is needed has no holder.
    """
    if old.layer_sizes != new.layer_sizes:
        raise ValueError("the two layouts cut different layers")
    starts, stops, given, taken = _segments(old, new)
    sources = _sources(stops - starts, given, taken, holders, owners)
    merged: list[Transfer] = []
    rows = zip(starts.tolist(), stops.tolist(), given.tolist(), taken.tolist(), strict=True)
    first, last = 0, (-1, -1)
    for start, stop, shard, target in rows:
        if merged and last == (shard, target):
            merged.pop()
        else:
            first, last = start, (shard, target)
        merged.append(
            Transfer(source=sources[shard, target], destination=owners[target], shard=shard, start=first, stop=stop)
        )
    return tuple(merged)


def diff(old: Layout, new: Layout, holders: Sequence[Sequence[str]], owners: Sequence[str]) -> tuple[Transfer, ...]:
    """The part of `route` that travels between workers."""
    return tuple(t for t in route(old, new, holders, owners) if t.source != t.destination)


def _segments(old: Layout, new: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Starts, stops, old shards and new shards of the coarsest cut that refines both layouts."""
    old_starts, old_shards = _table(old)
    new_starts, new_shards = _table(new)
    starts = _distinct(np.concatenate([old_starts, new_starts]))
    stops = np.append(starts[1:], old.num_elements)[: len(starts)]
    given = old_shards[np.searchsorted(old_starts, starts, side="right") - 1]
    taken = new_shards[np.searchsorted(new_starts, starts, side="right") - 1]
    return starts, stops, given, taken


def _distinct(values: np.ndarray) -> np.ndarray:
    """Ascending, without repetitions; what numpy has for it imports a module on first use, during a recovery."""
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def _table(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Ascending starts of all ranges, and the shard of each."""
    starts = np.fromiter((start for ranges in layout.shards for start, _ in ranges), np.int64)
    shards = np.repeat(np.arange(layout.num_shards), [len(ranges) for ranges in layout.shards])
    order = np.argsort(starts)
    return starts[order], shards[order]


def _sources(
    sizes: np.ndarray,
    given: np.ndarray,
    taken: np.ndarray,
    holders: Sequence[Sequence[str]],
    owners: Sequence[str],
) -> Mapping[tuple[int, int], str]:
    """Who serves each (old shard, new shard) pair."""
    width = int(taken.max(initial=0)) + 1
    codes = given * width + taken
    pairs = _distinct(codes)
    index = np.searchsorted(pairs, codes)
    weights = np.bincount(index, weights=sizes, minlength=len(pairs)).astype(np.int64)
    sources: dict[tuple[int, int], str] = {}
    load: dict[str, int] = {}
    for i in np.lexsort((pairs, -weights)).tolist():
        shard, target = divmod(int(pairs[i]), width)
        able = holders[shard]
        if not able:
            raise ValueError(f"nobody holds shard {shard}")
        if owners[target] in able:
            sources[shard, target] = owners[target]
            continue
        source = min(able, key=lambda worker: (load.get(worker, 0), able.index(worker)))
        load[source] = load.get(source, 0) + int(weights[i])
        sources[shard, target] = source
    return sources
