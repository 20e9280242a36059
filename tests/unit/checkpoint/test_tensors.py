"""State written in one cut is read back in any other, bit for bit."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from elaswave.checkpoint import folders, tensors
from elaswave.checkpoint.tensors import Range, Span

SPANS: list[Span] = [("a", 0, 300), ("b.weight", 300, 301), ("c", 301, 900), ("d", 900, 1024)]
KINDS = {"master": torch.float32, "exp_avg": torch.float32, "hits": torch.int64}


def whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        kind: torch.randint(-(2**20), 2**20, (1024,), generator=generator).to(dtype) for kind, dtype in KINDS.items()
    }


def cuts(seed: int, num_shards: int) -> list[list[Range]]:
    """Random disjoint ranges that cover everything; a shard may be empty."""
    rng = random.Random(seed)
    points = [0, *sorted(rng.sample(range(1, 1024), 9)), 1024]
    shards: list[list[Range]] = [[] for _ in range(num_shards)]
    for start, stop in pairwise(points):
        shards[rng.randrange(num_shards)].append((start, stop))
    return shards


def shard(ranges: list[Range], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        kind: torch.cat([tensor[:0], *(tensor[start:stop] for start, stop in ranges)]) for kind, tensor in state.items()
    }


def write(folder: Path, shards: list[list[Range]]) -> None:
    folder.mkdir()
    for part, ranges in enumerate(shards):
        tensors.write_part(folder, part, list(tensors.pieces(SPANS, ranges, shard(ranges, whole()))))
    tensors.finish(folder, len(shards), "test")


@pytest.mark.parametrize("seed", range(6))
def test_any_cut_reads_what_any_cut_wrote(tmp_path: Path, seed: int):
    write(tmp_path / "x", cuts(seed, 1 + seed % 4))
    for ranges in cuts(seed + 100, 3):
        target = {kind: torch.zeros_like(tensor) for kind, tensor in shard(ranges, whole()).items()}
        tensors.read_into(tmp_path / "x", list(tensors.pieces(SPANS, ranges, target)))
        for kind, tensor in shard(ranges, whole()).items():
            assert torch.equal(target[kind], tensor)


def test_views_are_written_alone(tmp_path: Path):
    """A slice of a large tensor must not bring the large tensor to the disk."""
    large = {"master": torch.zeros(1 << 20)}
    num_bytes = tensors.write_part(
        tmp_path, 0, list(tensors.pieces([("a", 0, 1 << 20)], [(0, 16)], {"master": large["master"][:16]}))
    )
    assert num_bytes < 4096


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([("other", 0, 300)], "model.other is missing"),
        ([("a", 0, 299)], "model.a is missing or has another size"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, spans: list[Span], told: str):
    write(tmp_path / "x", [[(0, 1024)]])
    with pytest.raises(ValueError, match=told):
        tensors.read_into(tmp_path / "x", list(tensors.pieces(spans, [(0, 200)], {"master": torch.zeros(200)})))


def test_a_hole_is_named(tmp_path: Path):
    write(tmp_path / "x", [[(0, 100)], [(200, 1024)]])
    with pytest.raises(ValueError, match="a is not whole"):
        tensors.read_into(tmp_path / "x", list(tensors.pieces(SPANS, [(50, 300)], {"master": torch.zeros(250)})))


def test_nothing_is_there_before_it_is_published(tmp_path: Path):
    write(folders.partial(tmp_path, 3, 1), [[(0, 1024)]])
    assert folders.found(tmp_path) == []
