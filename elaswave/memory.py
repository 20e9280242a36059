"""Buffers on huge pages: the kernel frees them much faster, so a dead worker's sockets close sooner."""

import mmap

import torch

HUGE_PAGE_BYTES = 2 << 20


def allocate(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A zeroed flat tensor on an anonymous mapping of its own, on huge pages where the system allows them.

    Args:
        num_elements: of the tensor; zero is allowed.
        dtype: of the tensor.
    """
    num_bytes = num_elements * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(0, dtype=dtype)
    if num_bytes < HUGE_PAGE_BYTES:
        return torch.zeros(num_elements, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # the kernel was built without transparent huge pages; small ones work as well
    return torch.frombuffer(memory, dtype=dtype, count=num_elements)
