"""Activations and their gradients as messages: a header that tells dtypes and shapes, and one payload.

The sender of an activation knows its shape, the receiver need not; the gradient that goes back has the shape of what
it had sent, so it needs no header.
"""

from collections.abc import Sequence
from math import prod

import torch

from elaswave.errors import ConfigError, ProtocolError

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
TENSORS_MAX = 16
DIMS_MAX = 8
ALIGNMENT = 64
HEADER_WORDS = 1 + TENSORS_MAX * (3 + DIMS_MAX)
PAYLOAD_BYTES_MAX = 1 << 34

Tensors = tuple[torch.Tensor, ...]


def describe(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The header, (HEADER_WORDS,) int64: count, then per tensor dtype, whether it takes a gradient, dims and shape.

    Raises:
        ConfigError: a layer's output cannot travel.
    """
    if len(tensors) > TENSORS_MAX:
        raise ConfigError("model", f"{len(tensors)} tensors", f"a layer may give at most {TENSORS_MAX} to the next")
    words = [len(tensors)]
    for tensor in tensors:
        if tensor.dtype not in DTYPES or tensor.dim() > DIMS_MAX:
            raise ConfigError(
                "model", f"{tensor.dtype} of {tensor.dim()} dims", "a layer's output cannot be of this kind"
            )
        shape = [*tensor.shape, *[0] * (DIMS_MAX - tensor.dim())]
        words += [DTYPES.index(tensor.dtype), int(tensor.requires_grad), tensor.dim(), *shape]
    words += [0] * (HEADER_WORDS - len(words))
    return torch.tensor(words, dtype=torch.int64)


def empty_like(header: torch.Tensor) -> tuple[torch.Tensor, Tensors, tuple[bool, ...]]:
    """Room for what a header announces.

    Returns:
        The payload, (bytes,) uint8, views of it as the announced tensors, and which of them take a gradient.

    Raises:
        ProtocolError: the header is not one.
    """
    words = header.tolist()
    layout, flags = [], []
    if not 0 <= words[0] <= TENSORS_MAX:
        raise ProtocolError(f"a message of {words[0]} tensors")
    for number in range(words[0]):
        kind, flag, dims, *shape = words[1 + number * (3 + DIMS_MAX) : 1 + (number + 1) * (3 + DIMS_MAX)]
        if not (0 <= kind < len(DTYPES) and 0 <= dims <= DIMS_MAX and all(size >= 0 for size in shape)):
            raise ProtocolError(f"a message with a tensor of kind {kind} and shape {shape}")
        if not 0 <= flag <= DTYPES[kind].is_floating_point:
            raise ProtocolError(f"a message with a tensor of {DTYPES[kind]} that takes a gradient: {flag}")
        layout.append((DTYPES[kind], tuple(shape[:dims])))
        flags.append(bool(flag))
    payload, views = _room(layout)
    return payload, views, tuple(flags)


def room_for(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Tensors]:
    """Room for tensors of the same dtypes and shapes: the payload, and views of it."""
    return _room([(tensor.dtype, tuple(tensor.shape)) for tensor in tensors])


def pack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The payload; of a single contiguous tensor its own memory, which must then not change until it is sent."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return tensors[0].detach().reshape(-1).view(torch.uint8)
    payload, views = room_for(tensors)
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor.detach())
    return payload


def _room(layout: Sequence[tuple[torch.dtype, tuple[int, ...]]]) -> tuple[torch.Tensor, Tensors]:
    starts, total = [], 0
    for dtype, shape in layout:
        total = -(-total // ALIGNMENT) * ALIGNMENT
        starts.append(total)
        if prod(max(size, 1) for size in shape) > PAYLOAD_BYTES_MAX:  # even one without elements has a size
            raise ProtocolError(f"a message with a tensor of shape {shape}; the bound is {PAYLOAD_BYTES_MAX} bytes")
        total += prod(shape) * dtype.itemsize
    if total > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"a message of {total} bytes; the bound is {PAYLOAD_BYTES_MAX}")
    payload = torch.empty(total, dtype=torch.uint8)
    views = tuple(
        payload[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for start, (dtype, shape) in zip(starts, layout, strict=True)
    )
    return payload, views
