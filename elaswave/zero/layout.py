"""Cut optimizer state into shards, and list what must travel when the cut changes.

Interleaved, as in ElasWave (https://arxiv.org/abs/2510.00606): every unit is cut on its own, so that a layer
changes hands in disjoint rank-to-rank transfers and nothing else moves. Contiguous, as in ZeRO
(https://arxiv.org/abs/1910.02054): one flat buffer of all units that the same members hold is cut. In both, a member
with a lower number lies before one with a higher inside every unit, so cuts for nearby numbers of members overlap.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from elaswave.config import ZeroLayout

CHUNK = 256

Range = tuple[int, int]
Ranges = tuple[Range, ...]
Bucket = tuple[tuple[int, ...], tuple[int, ...]]
"""Units, and the members over which they are cut; both ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A cut of all units; a pure function of all attributes but the last, each of which JSON can carry.

    A bucket's local order is that of its units one behind the other: of the flat buffer that its members reduce.

    Attributes:
        unit_sizes: elements of each unit, in flat order.
        num_shards: one per member.
        kind: what is cut, each unit or whole buckets.
        chunk: shards begin at multiples of it inside a unit.
        buckets: every unit is in exactly one, and is cut over the members of that.
        shards: per member its (start, stop) ranges in global flat order, ascending, none empty, each inside one unit.
    """

    unit_sizes: tuple[int, ...]
    num_shards: int
    kind: ZeroLayout
    chunk: int
    buckets: tuple[Bucket, ...]
    shards: tuple[Ranges, ...]

    @property
    def num_elements(self) -> int:
        """Elements of all units."""
        return sum(self.unit_sizes)

    def ranges(self, shard: int) -> Ranges:
        """(start, stop) element ranges of a shard in global flat order."""
        return self.shards[shard]

    def size(self, shard: int) -> int:
        """Elements of a shard."""
        return count(self.shards[shard])

    def bucket_size(self, bucket: int) -> int:
        """Elements of a bucket."""
        return sum(self.unit_sizes[unit] for unit in self.buckets[bucket][0])

    def bucket_ranges(self, bucket: int) -> Ranges:
        """Global (start, stop) ranges of a bucket in its local order; those of neighbouring units are merged."""
        offsets = _offsets(self.unit_sizes)
        return join((offsets[unit], offsets[unit + 1]) for unit in self.buckets[bucket][0])

    def spans(self, bucket: int) -> tuple[Ranges, ...]:
        """Per member of a bucket its (start, stop) ranges in the bucket's local order, merged where they touch."""
        units, members = self.buckets[bucket]
        offsets = _offsets(self.unit_sizes)
        begins = dict(zip(units, _offsets([self.unit_sizes[unit] for unit in units]), strict=False))
        found = []
        for member in members:
            moved = []
            for start, stop in self.shards[member]:
                unit = bisect_right(offsets, start) - 1
                if unit in begins:
                    moved.append((start - offsets[unit] + begins[unit], stop - offsets[unit] + begins[unit]))
            found.append(join(moved))
        return tuple(found)

    def pieces(self, shard: int) -> tuple[tuple[int, Ranges], ...]:
        """Where a member's part of each of its buckets lies in its shard.

        Returns:
            For every bucket that the member takes part in, its number and (start, stop) ranges in the flat order of
            the shard; one behind the other they are the member's spans of the bucket. None where it owns nothing.
        """
        offsets = _offsets(self.unit_sizes)
        found = {number: list[Range]() for number, (_, members) in enumerate(self.buckets) if shard in members}
        number_of = {unit: number for number in found for unit in self.buckets[number][0]}
        local = 0
        for start, stop in self.shards[shard]:
            found[number_of[bisect_right(offsets, start) - 1]].append((local, local + stop - start))
            local += stop - start
        return tuple((number, join(ranges)) for number, ranges in found.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A range of global flat elements that one worker gives to another.

    Attributes:
        source: worker that holds it now, as owner or in a copy.
        destination: worker that is to have it; the same as `source` when nothing travels.
        shard: of what `source` holds, the part that contains the range, such as an old shard.
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


def join(ranges: Iterable[Range]) -> Ranges:
    """Ascending ranges without the empty ones, merged where they touch."""
    joined: list[Range] = []
    for start, stop in ranges:
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)


def _offsets(sizes: Iterable[int]) -> list[int]:
    """Where each of things of these sizes begins when they lie one behind the other, and where the last one ends."""
    return list(accumulate(sizes, initial=0))


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
    unit_sizes: Sequence[int],
    num_shards: int,
    kind: ZeroLayout | str = ZeroLayout.INTERLEAVED,
    chunk: int = CHUNK,
    buckets: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None,
) -> Layout:
    """Give every element to exactly one shard.

    Interleaved, a unit's cut depends on the number of its bucket's members alone, not on what else is in the bucket:
    what joins a bucket or leaves it moves nothing else. Per stretch of neighbouring units in a bucket, what a member
    gets differs from its share by less than four chunks, and by less than two if all units are in one bucket.
    Contiguous, it does by less than two in a whole bucket.

    Args:
        unit_sizes: elements of each unit; zero is allowed.
        num_shards: number of members; may exceed the number of chunks, some shards are then empty.
        kind: `interleaved` or `contiguous`.
        chunk: elements; every boundary is a multiple of it, counted from the start of its unit, or a unit's end.
        buckets: units and members of each, both ascending; one of everything by default.

    Raises:
        ValueError: a number is out of range, or some unit is not in exactly one bucket.
    """
    if num_shards < 1 or chunk < 1 or any(size < 0 for size in unit_sizes):
        raise ValueError(f"cannot cut units {tuple(unit_sizes)} into {num_shards} shards by chunks of {chunk}")
    sizes = np.asarray(unit_sizes, np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    kind = ZeroLayout(kind)
    chosen = _checked(buckets, len(sizes), num_shards)
    whole = {}
    if kind is ZeroLayout.INTERLEAVED:
        whole = {ways: _interleaved(sizes, offsets, ways, chunk) for ways in {len(members) for _, members in chosen}}
    shards: list[list[Range]] = [[] for _ in range(num_shards)]
    for units, members in chosen:
        index, ways = np.array(units, np.int64), len(members)
        bounds = whole[ways][index] if whole else _contiguous(sizes[index], offsets[index], ways, chunk)
        for place, member in enumerate(members):
            shards[member] += _column(bounds, place)
    return Layout(
        unit_sizes=tuple(sizes.tolist()),
        num_shards=num_shards,
        kind=kind,
        chunk=chunk,
        buckets=chosen,
        shards=tuple(tuple(sorted(ranges)) for ranges in shards),
    )


def _checked(
    buckets: Sequence[tuple[Sequence[int], Sequence[int]]] | None, num_units: int, num_shards: int
) -> tuple[Bucket, ...]:
    """The buckets as tuples, if they are such."""
    if buckets is None:
        return ((tuple(range(num_units)), tuple(range(num_shards))),)
    found = tuple((tuple(units), tuple(members)) for units, members in buckets)
    ascending = all(list(part) == sorted(set(part)) for bucket in found for part in bucket)
    known = all(members and members[0] >= 0 and members[-1] < num_shards for _, members in found)
    if not ascending or not known or sorted(unit for units, _ in found for unit in units) != list(range(num_units)):
        raise ValueError(
            f"cannot cut {num_units} units over {num_shards} members by {found}: every unit must be in exactly one "
            "bucket, every bucket must have members, and both must ascend"
        )
    return found


def _column(bounds: np.ndarray, place: int) -> list[Range]:
    """The non-empty ranges between two boundaries, one per unit at most."""
    starts, stops = bounds[:, place], bounds[:, place + 1]
    some = stops > starts
    return list(zip(starts[some].tolist(), stops[some].tolist(), strict=True))


def _interleaved(sizes: np.ndarray, offsets: np.ndarray, ways: int, chunk: int) -> np.ndarray:
    """Boundaries (units, ways + 1), global.

    What rounding to chunks gives to a shard in one unit too much or too little is made up for in the next, so
    the error of a whole shard does not grow with the number of units.
    """
    bounds = np.empty((len(sizes), ways + 1), np.int64)
    index = np.arange(ways + 1, dtype=np.int64)
    before = np.zeros(ways + 1, np.int64)  # elements in front of each boundary, in the units done so far
    for unit, size in enumerate(sizes.tolist()):
        wanted = index * offsets[unit + 1] - ways * before  # in units of 1 / ways element
        rounded = (2 * wanted + ways * chunk) // (2 * ways * chunk) * chunk
        rounded = np.maximum.accumulate(np.clip(rounded, 0, size))
        rounded[0], rounded[-1] = 0, size
        before += rounded
        bounds[unit] = offsets[unit] + rounded
    return bounds


def _contiguous(sizes: np.ndarray, begins: np.ndarray, ways: int, chunk: int) -> np.ndarray:
    """Boundaries (units, ways + 1), global: equal cuts of the whole, each moved to the nearest chunk.

    Args:
        sizes: of the units of a bucket.
        begins: where they begin in global order.
        ways: how many.
        chunk: elements.
    """
    if not len(sizes):
        return np.empty((0, ways + 1), np.int64)
    local = np.concatenate(([0], np.cumsum(sizes)))
    wanted = np.arange(ways + 1, dtype=np.int64) * local[-1] // ways
    unit = np.clip(np.searchsorted(local, wanted, side="right") - 1, 0, len(sizes) - 1)
    inside = (2 * (wanted - local[unit]) + chunk) // (2 * chunk) * chunk
    points = local[unit] + np.minimum(inside, sizes[unit])
    points[-1] = local[-1]
    return np.clip(points[None, :], local[:-1, None], local[1:, None]) + (begins - local[:-1])[:, None]


def route(old: Layout, new: Layout, holders: Sequence[Sequence[str]], owners: Sequence[str]) -> tuple[Transfer, ...]:
    """Where every element of every new shard comes from, ascending by element; adjacent ranges are merged.

    A new owner that holds an element already, as owner or in a copy, is its own source. Otherwise the holder that
    has least to send is chosen, larger parts first.

    Args:
        old: the cut in which the state is held.
        new: the cut to reach; of the same units, whatever its buckets and number of members.
        holders: per old shard the workers that hold it, preferred ones first.
        owners: per new shard its owner.

    Raises:
        ValueError: the layouts are of different units, or a shard that is needed has no holder.
    """
    if old.unit_sizes != new.unit_sizes:
        raise ValueError("the two layouts cut different layers")
    return _transfers(old, holders, owners, sorted(_numbered(new.shards)))


def diff(old: Layout, new: Layout, holders: Sequence[Sequence[str]], owners: Sequence[str]) -> tuple[Transfer, ...]:
    """The part of `route` that travels between workers."""
    return tuple(t for t in route(old, new, holders, owners) if t.source != t.destination)


def supply(old: Layout, holders: Sequence[Sequence[str]], wanted: Mapping[str, Ranges]) -> tuple[Transfer, ...]:
    """Where everything that workers want comes from, by worker and ascending; sources are chosen as in `route`.

    Args:
        old: the cut in which the state is held.
        holders: per old shard the workers that hold it, preferred ones first.
        wanted: per worker the global element ranges to give it, ascending; several may want the same elements.

    Raises:
        ValueError: a shard that is needed has no holder.
    """
    return _transfers(old, holders, tuple(wanted), _numbered(wanted.values()))


def addends(held: Mapping[str, Ranges], wanted: Mapping[str, Ranges]) -> tuple[Transfer, ...]:
    """Every holder's part of what is wanted, to be added up where it arrives; what nobody holds comes from nowhere.

    Args:
        held: per worker the global element ranges of its partial sums, ascending; part 0 of what it holds.
        wanted: per worker the ranges whose sums it is to have, ascending.
    """
    return tuple(
        Transfer(source=source, destination=destination, shard=0, start=start, stop=stop)
        for destination, needed in wanted.items()
        for source, ranges in held.items()
        for start, stop in join(intersect(ranges, needed))
    )


def _numbered(shards: Iterable[Ranges]) -> list[tuple[int, int, int]]:
    """Rows (start, stop, number) of all ranges of all shards that are not empty."""
    return [(start, stop, number) for number, ranges in enumerate(shards) for start, stop in ranges if start < stop]


def _transfers(
    old: Layout, holders: Sequence[Sequence[str]], owners: Sequence[str], wanted: Sequence[tuple[int, int, int]]
) -> tuple[Transfer, ...]:
    """Transfers in the order of the rows (start, stop, number of the owner) of `wanted`."""
    starts, stops, given, taken = _segments(old, wanted)
    sources = _sources(stops - starts, given, taken, holders, owners)
    merged: list[Transfer] = []
    rows = zip(starts.tolist(), stops.tolist(), given.tolist(), taken.tolist(), strict=True)
    first, last = 0, (-1, -1, -1)
    for start, stop, shard, target in rows:
        if last == (shard, target, start):
            merged.pop()
        else:
            first = start
        last = (shard, target, stop)
        merged.append(
            Transfer(source=sources[shard, target], destination=owners[target], shard=shard, start=first, stop=stop)
        )
    return tuple(merged)


def _segments(
    old: Layout, wanted: Sequence[tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Starts, stops, old shards and numbers of the rows of `wanted`, cut where the old layout is."""
    ranges = np.array(sorted(_numbered(old.shards)), np.int64).reshape(-1, 3)
    rows = np.array(wanted, np.int64).reshape(-1, 3)
    first = np.searchsorted(ranges[:, 0], rows[:, 0], side="right") - 1
    sizes = np.searchsorted(ranges[:, 0], rows[:, 1], side="left") - first
    row = np.repeat(np.arange(len(rows)), sizes)
    index = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + first[row]
    starts, stops = np.maximum(ranges[index, 0], rows[row, 0]), np.minimum(ranges[index, 1], rows[row, 1])
    return starts, stops, ranges[index, 2], rows[row, 2]


def _distinct(values: np.ndarray) -> np.ndarray:
    """Ascending, without repetitions; what numpy has for it imports a module on first use, during a recovery."""
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


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
