"""Flat views of tensors, and sums in a given order for every dtype."""

from collections.abc import Collection, Sequence

import numpy as np
import torch

_NUMPY = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: None,
    torch.bfloat16: None,
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}
BLOCK_BYTES = 128 << 10
"""Summed at a time, so that the partial sum stays in the cache."""


def flat(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a contiguous CPU tensor, as a flat uint8 array on the same memory.

    Raises:
        ValueError: the tensor is elsewhere, or strided.
    """
    try:
        array = tensor.numpy()
    except (TypeError, RuntimeError):  # on another device, with a gradient, or of a dtype that numpy lacks
        return _flat_as_bytes(tensor)
    if not array.flags.c_contiguous:
        raise ValueError(f"needs a contiguous tensor, not strides of {tuple(tensor.stride())}")
    if array.ndim != 1:
        array = array.reshape(-1)
    return array.view(np.uint8)


def _flat_as_bytes(tensor: torch.Tensor) -> np.ndarray:
    if not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(f"needs a contiguous CPU tensor, not {tuple(tensor.stride())} on {tensor.device}")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def add(parts: Sequence[np.ndarray], out: np.ndarray, dtype: torch.dtype, overwritten: Collection[int] = ()) -> None:
    """out = ((parts[0] + parts[1]) + parts[2]) ..., all flat uint8 arrays of values of `dtype`.

    Args:
        parts: at least one; may be read-only.
        out: of the same length; may be the first part.
        dtype: any dtype that torch can add.
        overwritten: which of the other parts are `out` as well.
    """
    kind = _NUMPY.get(dtype)
    for start in range(0, len(out), BLOCK_BYTES):
        stop = start + BLOCK_BYTES
        pieces, target = [part[start:stop] for part in parts], out[start:stop]
        for index in overwritten:
            pieces[index] = pieces[index].copy()
        if len(pieces) == 1:
            target[:] = pieces[0]
        elif kind is None:
            _add_with_torch(pieces, target, dtype)
        else:
            _add_with_numpy([piece.view(kind) for piece in pieces], target.view(kind))


def add_whole(payloads: Sequence[bytes | memoryview], out: np.ndarray, dtype: torch.dtype) -> None:
    """The same for at least two small parts, which share no memory with `out`."""
    kind = _NUMPY.get(dtype)
    if kind is None:
        add([np.frombuffer(payload, np.uint8) for payload in payloads], out, dtype)
    else:
        _add_with_numpy([np.frombuffer(payload, kind) for payload in payloads], out.view(kind))


def _add_with_numpy(pieces: list[np.ndarray], target: np.ndarray) -> None:
    with np.errstate(all="ignore"):  # infinities and overflows are values here, as in torch
        np.add(pieces[0], pieces[1], out=target)
        for piece in pieces[2:]:
            np.add(target, piece, out=target)


def _add_with_torch(pieces: list[np.ndarray], target: np.ndarray, dtype: torch.dtype) -> None:
    total = torch.from_numpy(pieces[0].copy()).view(dtype)
    for piece in pieces[1:]:
        total += torch.from_numpy(piece.copy()).view(dtype)
    target[:] = total.view(torch.uint8).numpy()
