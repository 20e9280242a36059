"""Which elements of a flat tensor belong to which member of a group."""

from collections.abc import Sequence

import numpy as np

Spans = Sequence[Sequence[tuple[int, int]]]


def equal_spans(num_elements: int, num_members: int) -> list[tuple[tuple[int, int]]]:
    """One span per member, as equal as integers allow."""
    bounds = [num_elements * i // num_members for i in range(num_members + 1)]
    return [((bounds[i], bounds[i + 1]),) for i in range(num_members)]


def byte_spans(spans: Spans, element_size: int) -> list[np.ndarray]:
    """Per member an array (spans, 2) of byte offsets, ascending, without empty spans."""
    return [
        np.array([(a * element_size, b * element_size) for a, b in member if b > a], np.int64).reshape(-1, 2)
        for member in spans
    ]


def size_of(cuts: np.ndarray) -> int:
    """Bytes in `cuts`."""
    return int((cuts[:, 1] - cuts[:, 0]).sum())


def pieces(cuts: np.ndarray, num_bytes: int) -> list[np.ndarray]:
    """Cut a member's spans into consecutive runs of at most `num_bytes`."""
    runs, current, room = [], [], num_bytes
    for a, b in cuts.tolist():
        while a < b:
            size = min(b - a, room)
            current.append((a, a + size))
            a, room = a + size, room - size
            if not room:
                runs.append(np.array(current, np.int64))
                current, room = [], num_bytes
    if current:
        runs.append(np.array(current, np.int64))
    return runs


def gather(source: np.ndarray, cuts: np.ndarray, out: np.ndarray) -> None:
    """out = the bytes of `source` in `cuts`, one behind the other."""
    offset = 0
    for start, stop in cuts.tolist():
        out[offset : offset + stop - start] = source[start:stop]
        offset += stop - start


def scatter(source: np.ndarray, cuts: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `gather`."""
    offset = 0
    for start, stop in cuts.tolist():
        out[start:stop] = source[offset : offset + stop - start]
        offset += stop - start
