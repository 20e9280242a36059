"""A torch.distributed process group over a Group of the mesh, so that DDP and user code run on it.

The same object stays valid when an edit replaces the group's members: rank and size are asked anew at every call. An
operation that a newer view interrupts raises PeerLost, as everywhere. DDP's reducer does not survive an exception in
the middle of a backward pass: wrap the module again after the edit, with `init_sync=False`.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp
from torch.futures import Future

from elaswave.communicator.group import TAG_MAX, Group
from elaswave.communicator.mesh import Mesh

Tensors = Sequence[torch.Tensor]
TAG_ANY = 0


class ElasticProcessGroup(dist.ProcessGroup):
    """Collectives of the group `name` of a mesh, under torch's names.

    Sums and averages only; contiguous CPU tensors. Every call is complete when it returns.

    Args:
        mesh: of this worker.
        name: of a group that the mesh has been given by an edit.
    """

    def __init__(self, mesh: Mesh, name: str) -> None:
        group = mesh.group(name)
        super().__init__(group.rank, group.size)  # type: ignore[call-arg]  # the stubs lack this constructor
        self._mesh, self._name = mesh, name

    @property
    def group(self) -> Group:
        """The group as it is now."""
        return self._mesh.group(self._name)

    # torch asks under these names; DDP's reducer, which is C++, under the first three. The overloads that torch's stubs
    # declare for the collectives are never called on a subclass.
    def getBackendName(self) -> str:
        return "elaswave"

    def getRank(self) -> int:
        return self.group.rank

    def getSize(self) -> int:
        return self.group.size

    def rank(self) -> int:
        return self.group.rank

    def size(self) -> int:
        return self.group.size

    # -- collectives -------------------------------------------------------------------------------------------

    # pyrefly: ignore [bad-override]
    def allreduce(self, tensors: Tensors, opts: Any = None) -> dist.Work:
        average = _averages(opts)
        for tensor in tensors:
            _in_place(tensor, self.group.all_reduce)
            if average:
                tensor.div_(self.group.size)
        return _done(list(tensors))

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> dist.Work:
        return self.allreduce(tensors, opts)

    # pyrefly: ignore [bad-override]
    def broadcast(self, tensors: Tensors, opts: Any) -> dist.Work:
        for tensor in tensors:
            _in_place(tensor, lambda x: self.group.broadcast(x, int(opts.rootRank)))
        return _done(list(tensors))

    # pyrefly: ignore [bad-override]
    def allgather(self, outputs: Sequence[list[torch.Tensor]], inputs: Tensors, opts: Any = None) -> dist.Work:
        for parts, own in zip(outputs, inputs, strict=True):
            whole = own.new_empty(self.group.size * own.numel())
            self.group.all_gather(own.contiguous().view(-1), whole)
            for part, got in zip(parts, whole.chunk(self.group.size), strict=True):
                part.copy_(got.view_as(part))
        return _done([part for parts in outputs for part in parts])

    def _allgather_base(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> dist.Work:
        whole = output if output.is_contiguous() else torch.empty_like(output, memory_format=torch.contiguous_format)
        self.group.all_gather(input.contiguous().view(-1), whole.view(-1))
        if whole is not output:
            output.copy_(whole)
        return _done([output])

    def _reduce_scatter_base(
        self, outputTensor: torch.Tensor, inputTensor: torch.Tensor, opts: Any = None
    ) -> dist.Work:
        average, output = _averages(opts), outputTensor
        own = output if output.is_contiguous() else torch.empty_like(output, memory_format=torch.contiguous_format)
        self.group.reduce_scatter(inputTensor.contiguous().view(-1), own.view(-1))
        if average:
            own.div_(self.group.size)
        if own is not output:
            output.copy_(own)
        return _done([output])

    # pyrefly: ignore [bad-override]
    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[list[torch.Tensor]], opts: Any = None) -> dist.Work:
        for output, parts in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, torch.cat([part.reshape(-1) for part in parts]), opts)
        return _done(list(outputs))

    # pyrefly: ignore [bad-override]
    def barrier(self, opts: Any = None) -> dist.Work:
        self.group.barrier()
        return _done([])

    # -- messages ----------------------------------------------------------------------------------------------

    def send(self, tensors: Tensors, dstRank: int, tag: int = 0) -> dist.Work:
        for tensor in tensors:
            self.group.send(tensor.contiguous(), dstRank, tag & TAG_MAX)
        return _done(list(tensors))

    def recv(self, tensors: Tensors, srcRank: int, tag: int = 0) -> dist.Work:
        for tensor in tensors:
            _in_place(tensor, lambda x: self.group.recv(x, srcRank, tag & TAG_MAX))
        return _done(list(tensors))


def _averages(opts: Any) -> bool:
    """Whether the sum is to be divided by the number of members.

    Raises:
        ValueError: neither a sum nor an average is asked for.
    """
    operation = getattr(opts, "reduceOp", ReduceOp.SUM)
    if operation == ReduceOp.AVG:
        return True
    if operation != ReduceOp.SUM:
        raise ValueError(f"reduce operation {operation}: this process group has SUM and AVG")
    return False


def _in_place(tensor: torch.Tensor, operation: Callable[[torch.Tensor], object]) -> None:
    """Apply an operation that needs contiguous memory and changes its argument."""
    with torch.no_grad():
        if tensor.is_contiguous():
            operation(tensor)
            return
        copy = tensor.contiguous()
        operation(copy)
        tensor.copy_(copy)


class _Done(dist.Work):
    """Work that was complete before it was handed out."""

    def __init__(self, result: list[torch.Tensor]) -> None:
        super().__init__()
        self._result = result
        self._future: Future[list[torch.Tensor]] = Future()
        self._future.set_result(result)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def result(self) -> list[torch.Tensor]:
        return self._result

    def get_future(self) -> Future[list[torch.Tensor]]:
        return self._future


def _done(result: list[torch.Tensor]) -> dist.Work:
    return _Done(result)
