"""A group: an ordered set of members with an epoch. It owns no connection, so an edit replaces these fields.

Sums are taken in the order of logical slots, not of ranks: the bits of a result depend neither on which member
carries which slot nor, once every slot is carried by someone, on how many members there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from elaswave.communicator import inline, staged
from elaswave.communicator.spans import Spans, byte_spans, equal_spans, gather, scatter, size_of
from elaswave.communicator.stage import Stage
from elaswave.communicator.sums import add, flat
from elaswave.communicator.transfers import Handle

if TYPE_CHECKING:
    from elaswave.communicator.mesh import Mesh

TAG_MAX = (1 << 31) - 1
COLLECTIVE = 1 << 31
STAR_BYTES_MAX = 32 << 10


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What an edit says about a group.

    Attributes:
        members: worker ids, in order of rank.
        slots: for each logical slot the member that carries it; one slot per member by default.
    """

    members: tuple[str, ...]
    slots: tuple[str, ...] | None = None


class Group:
    """Collectives and messages among the members of a group.

    All tensors are contiguous CPU tensors; every call raises PeerLost at once when a newer view interrupts, and
    DeadlineExceeded after the mesh's timeout.

    Attributes:
        rank: this worker's position among the members.
        size: number of members.
    """

    def __init__(self, mesh: "Mesh", name: str, number: int, epoch: int, spec: GroupSpec) -> None:
        self.mesh, self.name, self.id = mesh, name, number
        self.stage = Stage(mesh)
        self.spec = GroupSpec(())
        self.edit(epoch, spec)

    def edit(self, epoch: int, spec: GroupSpec) -> None:
        """Replace members and epoch."""
        self.epoch, self._sequence = epoch, 0
        self.stage.reset()
        if spec == self.spec:
            return
        self.spec, self.members, self.slots = spec, spec.members, spec.slots or spec.members
        me, members = self.mesh.worker_id, spec.members
        self.rank, self.size = members.index(me), len(members)
        self.peers = members[: self.rank] + members[self.rank + 1 :]
        self.own_slots = self.slots.count(me)
        self._most_slots = 0

    def close(self) -> None:
        self.stage.close()

    @property
    def peer_ranks(self) -> list[int]:
        """Ranks of `peers`, in the same order."""
        return [rank for rank in range(self.size) if rank != self.rank]

    def next_tag(self) -> int:
        """A tag for one round of a collective; all members count alike."""
        self._sequence = (self._sequence + 1) & TAG_MAX
        return COLLECTIVE | self._sequence

    # -- messages ----------------------------------------------------------------------------------------------

    def isend(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> Handle:
        """Begin to send to a member; the tensor must not change until the handle is done."""
        return self.mesh.outbox.start((self.members[dst], self.id, self.epoch, self._user(tag)), flat(tensor))

    def irecv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> Handle:
        """Begin to receive from a member; shape and dtype must be what is sent."""
        return self.mesh.inbox.post((self.members[src], self.id, self.epoch, self._user(tag)), flat(tensor))

    def wait(self, handles: Handle | Sequence[Handle]) -> None:
        """Wait until all are done."""
        inline.wait(self, [handles] if isinstance(handles, Handle) else handles)

    def send(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> None:
        self.wait(self.isend(tensor, dst, tag))

    def recv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> None:
        self.wait(self.irecv(tensor, src, tag))

    def _user(self, tag: int) -> int:
        if not 0 <= tag <= TAG_MAX:
            raise ValueError(f"tag = {tag}: use 0 to {TAG_MAX}")
        return tag

    # -- collectives -------------------------------------------------------------------------------------------

    def all_reduce(self, x: torch.Tensor | Sequence[torch.Tensor], out: torch.Tensor | None = None) -> None:
        """Sum over all slots.

        Args:
            x: this member's tensor, or one tensor per slot it carries, in order of slot.
            out: receives the sum; by default the first tensor of `x`, whose value is then lost if interrupted.
        """
        own = [x] if isinstance(x, torch.Tensor) else x
        if len(own) != self.own_slots:
            raise ValueError(f"group {self.name}: {len(own)} tensors for {self.own_slots} slots of this member")
        parts = [flat(tensor) for tensor in own]
        result, dtype = (parts[0], own[0].dtype) if out is None else (flat(out), out.dtype)
        for part in parts:
            if len(part) != len(result):
                raise ValueError(f"group {self.name}: tensors of different sizes cannot be added")
        if self.size == 1:
            add([part.copy() if i else part for i, part in enumerate(parts)], result, dtype)
        elif len(result) * self._slots_max() <= STAR_BYTES_MAX:
            inline.all_reduce(self, parts, result, dtype)
        elif self.stage.usable(self.peers):
            staged.all_reduce(self, parts, result, dtype)
        else:
            inline.all_reduce_large(self, parts, result, dtype)

    def _slots_max(self) -> int:
        if not self._most_slots:
            self._most_slots = max(self.slots.count(member) for member in self.members)
        return self._most_slots

    def reduce_scatter(self, x: torch.Tensor, out: torch.Tensor, spans: Spans | None = None) -> None:
        """Sum over the members; each keeps its own spans.

        Args:
            x: flat, n elements.
            out: this member's spans of the sum, one behind the other.
            spans: per member its (start, stop) element ranges of `x`; equal cuts by default.
        """
        source, result = flat(x), flat(out)
        cuts = self._cuts(x.numel(), x.element_size(), spans, len(result))
        if self.size == 1:
            gather(source, cuts[0], result)
        elif self.stage.usable(self.peers):
            staged.reduce_scatter(self, source, result, cuts, x.dtype)
        else:
            inline.reduce_scatter(self, source, result, cuts, x.dtype)

    def all_gather(self, x: torch.Tensor, out: torch.Tensor, spans: Spans | None = None) -> None:
        """Collect every member's part.

        Args:
            x: this member's spans, one behind the other.
            out: flat, n elements; receives all spans.
            spans: per member its (start, stop) element ranges of `out`; equal cuts by default.
        """
        source, result = flat(x), flat(out)
        cuts = self._cuts(out.numel(), out.element_size(), spans, len(source))
        if self.size == 1:
            scatter(source, cuts[0], result)
        elif len(result) <= STAR_BYTES_MAX:
            inline.all_gather_small(self, source, result, cuts)
        elif self.stage.usable(self.peers):
            staged.all_gather(self, source, result, cuts)
        else:
            inline.all_gather(self, source, result, cuts)

    def _cuts(self, num_elements: int, element_size: int, spans: Spans | None, own_bytes: int) -> list[np.ndarray]:
        cuts = byte_spans(equal_spans(num_elements, self.size) if spans is None else spans, element_size)
        if len(cuts) != self.size:
            raise ValueError(f"group {self.name}: spans of {len(cuts)} members, but it has {self.size}")
        own = size_of(cuts[self.rank])
        if own != own_bytes:
            raise ValueError(f"group {self.name}: this member's spans have {own} bytes, its tensor {own_bytes}")
        return cuts

    def broadcast(self, x: torch.Tensor, src: int = 0) -> None:
        """Give every member the tensor of member `src`."""
        inline.broadcast(self, flat(x), src)

    def barrier(self) -> None:
        """Return when every member has called it."""
        inline.barrier(self)
