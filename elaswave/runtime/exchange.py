"""Small values that every member shows to every other: JSON rows and rows of integers."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from elaswave.communicator.group import Group
from elaswave.errors import ProtocolError

ROW_BYTES_MAX = 1 << 20


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
    sizes = [row[0] for row in gather_rows(group, [len(data)])]
    if max(sizes) > ROW_BYTES_MAX:
        raise ProtocolError(f"a member offers a row of {max(sizes)} bytes; the bound is {ROW_BYTES_MAX}")
    spans, start = [], 0
    for size in sizes:
        spans.append(((start, start + size),))
        start += size
    table = torch.empty(start, dtype=torch.uint8)
    group.all_gather(torch.frombuffer(bytearray(data), dtype=torch.uint8), table, spans=spans)
    raw = table.numpy().tobytes()
    return [json.loads(raw[span[0][0] : span[0][1]]) for span in spans]


def signed(value: int) -> int:
    """The int64 with the same 64 bits as an unsigned value."""
    return value - (1 << 64) if value >= 1 << 63 else value


def unsigned(value: int) -> int:
    """The inverse of `signed`."""
    return value & ((1 << 64) - 1)
