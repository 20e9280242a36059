"""Digests that prove two holders have the same state, however it is cut.

Elements stand in words of 64 bits by their global position, two float32 in each. The digest of a set of elements is the
sum of word * weight(position, tensor name) modulo 2**64, in which elements that are not in the set count as zero: a
multilinear hash (Carter and Wegman, https://doi.org/10.1016/0022-0000(79)90044-8; Lemire and Kaser,
https://arxiv.org/abs/1202.4961). Sums add up, so the parts of any cut give the digest of the whole, even where it
divides a word; weights are odd and therefore invertible, so a change of a single element, of whatever bits, always
changes the digest.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from elaswave.errors import CorruptState

BLOCK = 1 << 16
"""Positions that share a multiplier; their table of weights (at most 512 KiB) stays in the second-level cache."""

_MASK = (1 << 64) - 1
_WORD_BYTES = 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a worker found when it digested a shard that it holds.

    Attributes:
        holder: worker id.
        layout_epoch: epoch of the layout that the shard belongs to.
        shard: index in that layout.
        version: step after which the state was so.
        digest: of all its tensors.
    """

    holder: str
    layout_epoch: int
    shard: int
    version: int
    digest: int


def digest(ranges: Sequence[tuple[int, int]], tensors: Mapping[str, torch.Tensor]) -> int:
    """Digest of the elements in `ranges`, in [0, 2**64).

    Args:
        ranges: disjoint global (start, stop) element ranges.
        tensors: flat tensors by name; element i of each belongs to the i-th element of `ranges`.

    Raises:
        ValueError: a tensor has another length than the ranges.
    """
    pieces = _pieces(tuple(ranges))
    size = pieces[-1][3] if pieces else 0
    total = 0
    for name, tensor in tensors.items():
        if tensor.numel() != size:
            raise ValueError(f"{name} has {tensor.numel()} elements, its ranges have {size}")
        total += _kind_weight(name) * _digest_one(pieces, _bits(tensor))
    return total & _MASK


def combine(digests: Iterable[int]) -> int:
    """Digest of the union of disjoint parts, from the digests of the parts."""
    return sum(digests) & _MASK


def compare(recorded: Mapping[tuple[int, int, int], int], findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that are wrong: those copies must not be used.

    Args:
        recorded: digest that the owner announced at the commit, by (layout epoch, shard, version).
        findings: what holders found now. Where nothing is recorded, most holders of the same shard are right.

    Raises:
        CorruptState: nothing is recorded for some shard, and no digest has the majority of its holders.
    """
    groups: dict[tuple[int, int, int], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.layout_epoch, finding.shard, finding.version), []).append(finding)
    bad: list[Finding] = []
    for key in sorted(groups):
        truth = recorded[key] if key in recorded else _majority(groups[key])
        bad += [finding for finding in groups[key] if finding.digest != truth]
    return tuple(bad)


def _majority(findings: Sequence[Finding]) -> int:
    value, votes = Counter(finding.digest for finding in findings).most_common(1)[0]
    if 2 * votes <= len(findings):
        one = findings[0]
        told = ", ".join(f"{finding.holder} has {finding.digest:016x}" for finding in findings)
        raise CorruptState(f"holders of shard {one.shard} at step {one.version} disagree: {told}")
    return value


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """The elements' bits as unsigned integers of their own size."""
    size = tensor.dtype.itemsize
    return tensor.detach().view(_INTEGERS[size]).numpy().view(_UNSIGNED[size])


def _digest_one(pieces: Sequence[tuple[int, int, int, int]], bits: np.ndarray) -> int:
    return sum(_block_weight(block) * _sum(bits[first:last], low) for block, low, first, last in pieces) & _MASK


def _sum(bits: np.ndarray, low: int) -> int:
    """Words times weights of one piece, modulo 2**64.

    Args:
        bits: of its elements.
        low: position of the first one inside the block.
    """
    table, per_word = _table(), _WORD_BYTES // bits.itemsize
    first = min(-low % per_word, len(bits))
    last = first + (len(bits) - first) // per_word * per_word
    whole = table[(low + first) // per_word : (low + last) // per_word]
    total = int(np.dot(bits[first:last].view(np.int64), whole))
    for index in (*range(first), *range(last, len(bits))):
        word, place = divmod(low + index, per_word)
        total += (int(bits[index]) << 8 * bits.itemsize * place) * int(table[word])
    return total & _MASK


@lru_cache(maxsize=64)
def _pieces(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int, int, int], ...]:
    """Ranges cut at blocks: (block, first position inside it, first and last local index)."""
    pieces, local = [], 0
    for start, stop in ranges:
        while start < stop:
            block, low = divmod(start, BLOCK)
            size = min(stop - start, BLOCK - low)
            pieces.append((block, low, local, local + size))
            start, local = start + size, local + size
    return tuple(pieces)


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64 (https://doi.org/10.1145/2714064.2660195) of every uint64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@cache
def _table() -> np.ndarray:
    """Odd weights of the words inside a block, (BLOCK,) int64; fewer are used when a word holds several elements."""
    return (_mix(np.arange(BLOCK, dtype=np.uint64)) | np.uint64(1)).view(np.int64)


@lru_cache(maxsize=1 << 16)
def _block_weight(block: int) -> int:
    return int(_mix(np.array([block ^ 0x5851F42D4C957F2D], np.uint64))[0]) | 1


@cache
def _kind_weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
