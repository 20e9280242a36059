"""Carry out a plan of transfers: fill a new shard from old ones, here and on other workers.

The old shards are only read, so that a fault in the middle leaves everything that is needed to begin again. Messages
travel by themselves, behind whatever their workers compute. What is copied in between needs no messages and can be
left to another thread: `ask`, `pack`, `send`, `keep`, then, once it is all `ready`, `take`. `start` and `finish` are
the same for those who have nothing better to do than to wait.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch

from elaswave.communicator.group import Group
from elaswave.communicator.transfers import Handle
from elaswave.zero.layout import Range, Transfer, count

TAG = 0x5A01


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A shard, or a copy of one, as flat tensors.

    Attributes:
        ranges: ascending global element ranges.
        tensors: by name; element i of each belongs to the i-th element of `ranges`.
    """

    ranges: tuple[Range, ...]
    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        size = count(self.ranges)
        for name, tensor in self.tensors.items():
            if tensor.numel() != size:
                raise ValueError(f"{name} has {tensor.numel()} elements, its ranges have {size}")


NOTHING = Part(ranges=(), tensors={})
"""Target of a worker that only gives."""


class Remap:
    """One worker's side of a plan.

    Attributes:
        bytes_sent: to other workers.
        bytes_received: from other workers.
        bytes_kept: copied from shards that were here already.
    """

    def __init__(
        self,
        group: Group,
        plan: Sequence[Transfer],
        sources: Mapping[int, Part],
        target: Part = NOTHING,
        *,
        kinds: Mapping[str, torch.dtype] | None = None,
        add: bool = False,
        tag: int = TAG,
    ) -> None:
        """
        Args:
            group: all workers that the plan names are members; every member runs the same plan, with equal options.
            plan: where every element comes from, as `layout.route`, `supply` or `addends` tell it.
            sources: what this worker holds of it, such as old shards at the agreed version, by `Transfer.shard`.
            target: what to fill, such as `ShardedOptimizer.staging()`.
            kinds: tensors to move, and the dtype in which they travel; what has another at its source is rounded
                there, once, and what stays on a worker likewise. By default all of the target, as they are.
            add: add to the target instead of overwriting it; then an element may come from several sources. What is
                in the target beforehand counts as well, so it must not be in the plan too. Floats are added in the
                order in which the plan first names their sources, after what is here.
            tag: of the messages; different for plans that are under way at the same time.
        """
        self._group = group
        self._me = group.members[group.rank]
        self._plan = plan
        self._sources = {shard: _Index(part) for shard, part in sources.items()}
        self._target = _Index(target)
        self._add = add
        self._tag = tag
        dtypes = {name: tensor.dtype for name, tensor in target.tensors.items()} if kinds is None else kinds
        # widest elements first: then every section of a message begins at a multiple of its element size
        self._kinds = dict(sorted(dtypes.items(), key=lambda kind: (-kind[1].itemsize, kind[0])))
        self._element_bytes = sum(dtype.itemsize for dtype in self._kinds.values())
        self._packed: dict[int, torch.Tensor] = {}
        self._sends: list[Handle] = []
        self._receives: list[tuple[Handle, torch.Tensor, list[Transfer]]] = []
        self.bytes_sent = self.bytes_kept = 0
        self.bytes_received = self._message_bytes([t for t in plan if t.destination == self._me != t.source])

    def start(self) -> Self:
        """Post all messages, and copy what is here while they travel. The sources may change once it returns."""
        self.ask()
        self.pack()
        self.send()
        self.keep()
        return self

    def ask(self) -> None:
        """Post what is to be received."""
        incoming = self._by_peer([t for t in self._plan if t.destination == self._me != t.source], "source")
        for peer, transfers in incoming.items():
            message = torch.empty(self._message_bytes(transfers), dtype=torch.uint8)
            self._receives.append((self._group.irecv(message, peer, self._tag), message, transfers))

    def pack(self) -> None:
        """Put together what others get; needs no messages."""
        outgoing = self._by_peer([t for t in self._plan if t.source == self._me != t.destination], "destination")
        self._packed = {peer: self._pack(transfers) for peer, transfers in outgoing.items()}
        self.bytes_sent = sum(message.numel() for message in self._packed.values())

    def send(self) -> None:
        """Begin to send what was packed."""
        self._sends += [self._group.isend(message, peer, self._tag) for peer, message in self._packed.items()]
        self._packed = {}

    def keep(self) -> None:
        """Copy what is here already; needs no messages."""
        for transfer in self._plan:
            if transfer.source == transfer.destination == self._me:
                self._keep(transfer)

    @property
    def ready(self) -> bool:
        """Everything posted has arrived and been sent; `wait` will not."""
        return all(handle.done for handle in self._sends) and all(handle.done for handle, *_ in self._receives)

    def wait(self) -> None:
        """Wait until everything has arrived and been sent.

        Raises:
            PeerLost: a member was lost; the old shards are as they were, the target is not to be used.
        """
        self._group.wait([*(handle for handle, *_ in self._receives), *self._sends])

    def take(self) -> None:
        """Fill the target with what has arrived; needs no messages."""
        for _, message, transfers in self._receives:
            self._unpack(message, transfers)
        self._receives, self._sends = [], []

    def finish(self) -> None:
        """Wait until the target is whole and everything has been sent.

        Raises:
            PeerLost: a member was lost; the old shards are as they were, the target is not to be used.
        """
        for handle, message, transfers in self._receives:
            self._group.wait([handle])
            self._unpack(message, transfers)
        self._receives = []
        self._group.wait(self._sends)
        self._sends = []

    def _by_peer(self, transfers: Sequence[Transfer], role: str) -> dict[int, list[Transfer]]:
        """Transfers by the index of the other member."""
        found: dict[int, list[Transfer]] = {}
        for transfer in transfers:
            found.setdefault(self._group.members.index(getattr(transfer, role)), []).append(transfer)
        return found

    def _message_bytes(self, transfers: Sequence[Transfer]) -> int:
        return self._element_bytes * sum(t.stop - t.start for t in transfers)

    def _sections(self, message: torch.Tensor, transfers: Sequence[Transfer]) -> dict[str, torch.Tensor]:
        """The message as one flat tensor per kind."""
        size, start, sections = sum(t.stop - t.start for t in transfers), 0, {}
        for kind, dtype in self._kinds.items():
            sections[kind] = message[start : start + size * dtype.itemsize].view(dtype)
            start += size * dtype.itemsize
        return sections

    def _pack(self, transfers: Sequence[Transfer]) -> torch.Tensor:
        message = torch.empty(self._message_bytes(transfers), dtype=torch.uint8)
        for kind, section in self._sections(message, transfers).items():
            pieces = [self._sources[t.shard].find(kind, t.start, t.stop) for t in transfers]
            torch.cat([piece.to(section.dtype) for piece in pieces], out=section)
        return message

    def _unpack(self, message: torch.Tensor, transfers: Sequence[Transfer]) -> None:
        sizes = [t.stop - t.start for t in transfers]
        for kind, section in self._sections(message, transfers).items():
            for transfer, piece in zip(transfers, section.split(sizes), strict=True):
                self._fill(kind, transfer, piece)

    def _keep(self, t: Transfer) -> None:
        for kind, dtype in self._kinds.items():
            self._fill(kind, t, self._sources[t.shard].find(kind, t.start, t.stop).to(dtype))
        self.bytes_kept += self._message_bytes([t])

    def _fill(self, kind: str, t: Transfer, piece: torch.Tensor) -> None:
        room = self._target.find(kind, t.start, t.stop)
        if self._add:
            room.add_(piece)
        else:
            room.copy_(piece)


class _Index:
    """Finds global ranges in a part."""

    def __init__(self, part: Part) -> None:
        self.tensors = part.tensors
        self._starts = [start for start, _ in part.ranges]
        self._offsets = list(accumulate((stop - start for start, stop in part.ranges), initial=0))

    def find(self, kind: str, start: int, stop: int) -> torch.Tensor:
        """View of the elements in [start, stop), all of which are in the part."""
        index = bisect_right(self._starts, start) - 1
        first = self._offsets[index] + start - self._starts[index]
        return self.tensors[kind][first : first + stop - start]
