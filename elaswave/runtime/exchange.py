"""Small values that every member shows to every other: JSON rows and rows of integers."""

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from elaswave.communicator.group import Group
from elaswave.errors import ProtocolError

ROW_BYTES_MAX = 1 << 20
TOGETHER_BYTES_MAX = 32 << 10
"""Rows that are all told in one round, with room left over; longer ones take a second round."""
SIZE_BYTES = 8


def gather_rows(group: Group, row: Sequence[int]) -> list[list[int]]:
    """Every member's row of int64 values, in order of member.

    Args:
        group: whom to ask; every member calls this with a row of the same length.
        row: values that fit 64 signed bits.
    """
    mine = torch.tensor(list(row), dtype=torch.int64)
    table = torch.empty(group.size * len(row), dtype=torch.int64)
    group.all_gather(mine, table)
    return table.reshape(group.size, len(row)).tolist()


def gather_json(group: Group, value: Any) -> list[Any]:
    """Every member's JSON value, in order of member; sizes may differ."""
    data = json.dumps(value, separators=(",", ":")).encode()
    room = max(0, TOGETHER_BYTES_MAX // group.size - SIZE_BYTES)
    row = len(data).to_bytes(SIZE_BYTES, "little") + data[:room].ljust(room)
    table = torch.empty(group.size * len(row), dtype=torch.uint8)
    group.all_gather(_bytes(row), table)
    raw = table.numpy().tobytes()
    rows = [raw[start : start + len(row)] for start in range(0, len(raw), len(row))]
    sizes = [int.from_bytes(one[:SIZE_BYTES], "little") for one in rows]
    if max(sizes) > ROW_BYTES_MAX:
        raise ProtocolError(f"a member offers a row of {max(sizes)} bytes; the bound is {ROW_BYTES_MAX}")
    heads = [one[SIZE_BYTES : SIZE_BYTES + size] for one, size in zip(rows, sizes, strict=True)]
    tails = _tails(group, data[room:], [max(0, size - room) for size in sizes])
    return [json.loads(head + tail) for head, tail in zip(heads, tails, strict=True)]


def _tails(group: Group, data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """What of each member's row did not go with the first round."""
    if not any(sizes):
        return [b""] * len(sizes)
    bounds = list(accumulate(sizes, initial=0))
    table = torch.empty(bounds[-1], dtype=torch.uint8)
    group.all_gather(_bytes(data), table, spans=[(bound,) for bound in pairwise(bounds)])
    raw = table.numpy().tobytes()
    return [raw[start:stop] for start, stop in pairwise(bounds)]


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def signed(value: int) -> int:
    """The int64 with the same 64 bits as an unsigned value."""
    return value - (1 << 64) if value >= 1 << 63 else value


def unsigned(value: int) -> int:
    """The inverse of `signed`."""
    return value & ((1 << 64) - 1)
