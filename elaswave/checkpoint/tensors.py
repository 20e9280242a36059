"""Read and write flat state in the format of torch.distributed.checkpoint, without a process group.

Every parameter and every tensor that the optimizer keeps for it is stored flat, as `model.<name>` and
`optim.<name>.<kind>`, in as many pieces as the shards cut it into; any cut can read it back. Results of writing travel
as JSON files beside the tensors rather than through collectives, so that whoever writes last can finish.
Format: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from elaswave.checkpoint.folders import write_file
from elaswave.checkpoint.manifest import KEY
from elaswave.errors import ConfigError

METADATA = ".metadata"
MASTER = "master"

Span = tuple[str, int, int]
"""Name of a parameter, and its (start, stop) in global flat order."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of one stored tensor, and where a shard has it.

    Attributes:
        key: of the stored tensor.
        size: elements of the whole of it.
        offset: first element.
        tensor: (num_elements,), a view of the shard.
    """

    key: str
    size: int
    offset: int
    tensor: torch.Tensor

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.key, [self.offset])


def pieces(spans: Sequence[Span], ranges: Sequence[Range], tensors: Mapping[str, torch.Tensor]) -> Iterator[Piece]:
    """What a shard has of every stored tensor.

    Args:
        spans: all parameters, ascending.
        ranges: ascending global element ranges of the shard.
        tensors: flat tensors of the shard by kind.
    """
    local = 0
    for first, last in ranges:
        for name, start, stop in spans:
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            at = local + low - first
            for kind, tensor in tensors.items():
                key = f"model.{name}" if kind == MASTER else f"optim.{name}.{kind}"
                yield Piece(key=key, size=stop - start, offset=low - start, tensor=tensor[at : at + high - low])
        local += last - first


def write_part(folder: Path, part: int, shard: Sequence[Piece]) -> int:
    """Write one shard, and what is needed to find it; returns bytes.

    Raises:
        OSError: no space, no permission, or another worker has finished the checkpoint without this.
    """
    items = [
        WriteItem(
            index=piece.index,
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(torch.Size([piece.offset]), torch.Size([piece.tensor.numel()])),
                properties=TensorProperties.create_from_tensor(piece.tensor),
                size=torch.Size([piece.size]),
            ),
        )
        for piece in shard
    ]
    writer = FileSystemWriter(folder)
    plan = writer.prepare_global_plan([*[SavePlan([])] * part, SavePlan(items)])[-1]  # its place names the file
    results = writer.write_data(plan, _Source(shard)).wait()
    by_index = {piece.index: piece for piece in shard}
    rows = [_row(by_index[result.index], result) for result in results]
    write_file(folder / part_file(part), json.dumps(rows))
    return sum(result.size_in_bytes for result in results)


def _row(piece: Piece, result: WriteResult) -> list[object]:
    where = result.storage_data
    dtype = str(piece.tensor.dtype).removeprefix("torch.")
    return [
        *(piece.key, dtype, piece.size, piece.offset, piece.tensor.numel()),
        *(where.relative_path, where.offset, where.length),
    ]


def part_file(part: int) -> str:
    """Name of the file that says a part is whole."""
    return f"part-{part}.json"


def finish(folder: Path, num_parts: int, writer_name: str) -> None:
    """Write the metadata of all parts, which are all there.

    Args:
        folder: of the checkpoint.
        num_parts: how many.
        writer_name: another one for every worker, since several may come to this at once.

    Raises:
        OSError: as `write_part`.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    results: list[WriteResult] = []
    for part in range(num_parts):
        for key, dtype, size, offset, length, path, start, num_bytes in json.loads(
            (folder / part_file(part)).read_text()
        ):
            properties = TensorProperties(dtype=getattr(torch, dtype))
            entry = tensors.setdefault(key, TensorStorageMetadata(properties, torch.Size([size]), []))
            entry.chunks.append(ChunkStorageMetadata(torch.Size([offset]), torch.Size([length])))
            results.append(WriteResult(MetadataIndex(key, [offset]), num_bytes, _StorageInfo(path, start, num_bytes)))
    aside = folder / f".{writer_name}"
    aside.mkdir(exist_ok=True)
    FileSystemWriter(aside).finish(Metadata(dict(tensors)), [results])
    os.replace(aside / METADATA, folder / METADATA)
    aside.rmdir()


def read_into(folder: Path, shard: Sequence[Piece]) -> None:
    """Fill a shard from a checkpoint that may have been cut differently.

    Its `.metadata` is unpickled, as torch does: load only what you trust.

    Raises:
        ConfigError: a file or a tensor is missing or damaged.
    """
    try:
        _read_into(folder, shard)
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to
        raise ConfigError(KEY, str(folder), f"cannot be read ({error}); choose another checkpoint") from error


def _read_into(folder: Path, shard: Sequence[Piece]) -> None:
    reader = FileSystemReader(folder)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    items, targets = [], {}
    for piece in shard:
        for item, target in _reads(metadata, piece):
            targets[item.dest_index, item.storage_index] = target
            items.append(item)
    reader.read_data(LoadPlan(items), _Targets(targets)).wait()


def _reads(metadata: Metadata, piece: Piece) -> Iterator[tuple[ReadItem, torch.Tensor]]:
    """Which stretches of which chunks fill a piece."""
    stored = metadata.state_dict_metadata.get(piece.key)
    if not isinstance(stored, TensorStorageMetadata) or stored.size != torch.Size([piece.size]):
        raise ValueError(f"{piece.key} is missing or has another size")
    if stored.properties.dtype != piece.tensor.dtype:
        raise ValueError(f"{piece.key} is {stored.properties.dtype}, not {piece.tensor.dtype}")
    first, last, covered = piece.offset, piece.offset + piece.tensor.numel(), 0
    for chunk in stored.chunks:
        start, stop = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
        low, high = max(first, start), min(last, stop)
        if low >= high:
            continue
        covered += high - low
        item = ReadItem(
            type=LoadItemType.TENSOR,
            dest_index=piece.index,
            dest_offsets=torch.Size([low - first]),
            storage_index=MetadataIndex(piece.key, [start]),
            storage_offsets=torch.Size([low - start]),
            lengths=torch.Size([high - low]),
        )
        yield item, piece.tensor[low - first : high - first]
    if covered != last - first:
        raise ValueError(f"{piece.key} is not whole: elements {first} to {last} are not all there")


class _Source(DefaultSavePlanner):
    """Hands out the tensors of a shard."""

    def __init__(self, shard: Sequence[Piece]) -> None:
        super().__init__()
        self._tensors = {piece.index: piece.tensor for piece in shard}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        return self._tensors[write_item.index].clone()  # torch.save would write the whole storage behind a view


class _Targets(DefaultLoadPlanner):
    """Takes in the tensors of a shard."""

    def __init__(self, targets: Mapping[tuple[MetadataIndex, MetadataIndex], torch.Tensor]) -> None:
        super().__init__()
        self._targets = targets

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self._targets[read_item.dest_index, read_item.storage_index]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """It is in place already."""
