"""Digests that prove two holders have the same state, however it is cut.

The digest of a set of elements is the sum of bits(element) * weight(position, tensor name) modulo 2**64, a
multilinear hash (Carter and Wegman, https://doi.org/10.1016/0022-0000(79)90044-8; Lemire and Kaser,
https://arxiv.org/abs/1202.4961). Sums add up, so the parts of any cut give the digest of the whole; weights are odd
and therefore invertible, so a change of a single element, of whatever bits, always changes the digest.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from elaswave.errors import CorruptState

BLOCK = 1 << 16
"""Positions that share a multiplier; their table of weights (512 KiB) stays in the second-level cache."""

_MASK = (1 << 64) - 1
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Scratch(threading.local):
    """Memory for one block's products, of each thread its own."""

    def __init__(self) -> None:
        self.products = np.empty(BLOCK, np.int64)


_SCRATCH = _Scratch()


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
    """The elements' bits as signed integers of their own size."""
    return tensor.detach().view(_INTEGERS[tensor.dtype.itemsize]).numpy()


def _digest_one(pieces: Sequence[tuple[int, int, int, int]], bits: np.ndarray) -> int:
    table, total = _table(), 0
    for block, low, first, last in pieces:
        scratch = _SCRATCH.products[: last - first]
        np.copyto(scratch, bits[first:last])
        np.multiply(scratch, table[low : low + last - first], out=scratch)
        total += _block_weight(block) * int(np.add.reduce(scratch))
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
    """Odd weights of the positions inside a block, (BLOCK,) int64."""
    return (_mix(np.arange(BLOCK, dtype=np.uint64)) | np.uint64(1)).view(np.int64)


@lru_cache(maxsize=1 << 16)
def _block_weight(block: int) -> int:
    return int(_mix(np.array([block ^ 0x5851F42D4C957F2D], np.uint64))[0]) | 1


@cache
def _kind_weight(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") | 1
