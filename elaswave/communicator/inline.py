"""Collectives whose payload rides in the sockets: small ones on one host, and all of them across hosts."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from elaswave.communicator.rounds import collect, hear, ring, tell
from elaswave.communicator.spans import byte_spans, equal_spans, gather, pieces, scatter, size_of
from elaswave.communicator.sums import add, add_whole
from elaswave.communicator.transfers import Handle

if TYPE_CHECKING:
    from elaswave.communicator.group import Group

PIECE_BYTES = 1 << 20
AHEAD = 2
"""Pieces that are sent before those of one's own share are summed."""
DEPTH = 2 * AHEAD + 1
ROUND_BYTES = 4 << 20
"""One piece of every slot."""
ALIGN_BYTES = 64
DIRECT_MEMBERS_MAX = 2
"""Up to here everyone tells everyone. Beyond, two steps through the first member take fewer messages and less work."""


def _key(group: "Group", rank: int, tag: int) -> tuple[str, int, int, int]:
    return (group.members[rank], group.id, group.epoch, tag)


def wait(group: "Group", handles: Iterable[Handle]) -> None:
    """Wait until all are done."""
    pending = list(handles)

    def done() -> bool:
        while pending and pending[-1].done:
            pending.pop()
        return not pending

    group.mesh.wait(
        done,
        what=lambda: f"{len(pending)} messages in group {group.name}",
        needs=lambda: [handle.peer for handle in pending if not handle.done],
    )


def _others(group: "Group") -> list[int]:
    """The other ranks, beginning behind this one, so that not all talk to the same member at once."""
    return [(group.rank + i) % group.size for i in range(1, group.size)]


def barrier(group: "Group") -> None:
    """Everyone tells the first member, the first member tells everyone."""
    if group.size == 1:
        return
    tag = group.next_tag()
    if group.rank:
        ring(group, tag, group.members[:1])
        hear(group, tag, group.members[:1])
    else:
        hear(group, tag, group.peers)
        ring(group, tag, group.peers)


def broadcast(group: "Group", data: np.ndarray, src: int) -> None:
    tag, mesh = group.next_tag(), group.mesh
    if group.rank == src:
        wait(group, [mesh.outbox.start(_key(group, rank, tag), data) for rank in _others(group)])
    else:
        wait(group, [mesh.inbox.post(_key(group, src, tag), data)])


def all_reduce(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Everyone gets everyone's slots and sums in order of slots; in larger groups the first member does it for all."""
    tag, size = group.next_tag(), len(out)
    packed = parts[0].tobytes() if len(parts) == 1 else b"".join([part.data for part in parts])
    direct = group.size <= DIRECT_MEMBERS_MAX
    if direct or group.rank:
        tell(group, tag, group.peers if direct else group.members[:1], packed)
    if not direct and group.rank:
        out.data[:] = collect(group, tag, group.members[:1], [size])[0]
        return
    slots = group.slots
    received = collect(group, tag, group.peers, [slots.count(peer) * size for peer in group.peers])
    if slots is group.members:
        received.insert(group.rank, packed)
        add_whole(received, out, dtype)
    else:
        by_member = {peer: np.frombuffer(got, np.uint8) for peer, got in zip(group.peers, received, strict=True)}
        by_member[group.mesh.worker_id] = np.frombuffer(packed, np.uint8)
        add([by_member[member][i * size : (i + 1) * size] for member, i in slot_table(slots)], out, dtype)
    if not direct:
        tell(group, tag, group.peers, out.tobytes())


def slot_table(slots: tuple[str, ...]) -> list[tuple[str, int]]:
    """For each logical slot who carries it, and which of the carrier's slots it is."""
    seen: dict[str, int] = {}
    table = []
    for member in slots:
        table.append((member, seen.get(member, 0)))
        seen[member] = seen.get(member, 0) + 1
    return table


def all_gather_small(group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray]) -> None:
    """Everyone gets everyone's part; in larger groups from the first member, which gathers the whole."""
    tag = group.next_tag()
    direct = group.size <= DIRECT_MEMBERS_MAX
    if direct or group.rank:
        tell(group, tag, group.peers if direct else group.members[:1], source.tobytes())
    if not direct and group.rank:
        out.data[:] = collect(group, tag, group.members[:1], [len(out)])[0]
        return
    received = collect(group, tag, group.peers, [size_of(cuts[rank]) for rank in group.peer_ranks])
    scatter(source, cuts[group.rank], out)
    for rank, part in zip(group.peer_ranks, received, strict=True):
        scatter(np.frombuffer(part, np.uint8), cuts[rank], out)
    if not direct:
        tell(group, tag, group.peers, out.tobytes())


def reduce_scatter(
    group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray], dtype: torch.dtype
) -> None:
    """Everyone sends everyone its part in pieces, and sums each piece as soon as all have sent it."""
    runs = [pieces(cut, _piece_bytes(group)) for cut in cuts]
    exchange = Exchange(group, [source], runs, out)
    done = 0
    for number, run in enumerate(runs[group.rank]):
        size = size_of(run)
        add(exchange.take(number), out[done : done + size], dtype, exchange.overwritten)
        done += size
    exchange.finish()


def all_gather(group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray]) -> None:
    """Everyone sends everyone its part; whole spans are received in place."""
    tag, mesh = group.next_tag(), group.mesh
    receiving = []
    for rank in _others(group):
        for run in pieces(cuts[rank], PIECE_BYTES):
            for start, stop in run.tolist():
                receiving.append(mesh.inbox.post(_key(group, rank, tag), out[start:stop]))
    sending, done = [], 0
    for run in pieces(cuts[group.rank], PIECE_BYTES):
        for start, stop in run.tolist():
            part = source[done : done + stop - start]
            sending += [mesh.outbox.start(_key(group, rank, tag), part) for rank in _others(group)]
            out[start:stop] = part
            done += stop - start
    wait(group, [*receiving, *sending])


def all_reduce_large(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Everyone sums a slice of all slots in pieces, and sends each piece of the sum to all while the next arrives.

    `out` may be one of `parts`: nobody gets a piece of the sum to overwrite before its own share of it was received.
    """
    width = torch.empty(0, dtype=dtype).element_size()
    cuts = byte_spans(equal_spans(len(out) // width, group.size), width)
    runs = [pieces(cut, _piece_bytes(group)) for cut in cuts]
    tag, mesh = group.next_tag(), group.mesh
    receiving = [
        mesh.inbox.post(_key(group, rank, tag), out[start:stop])
        for rank in _others(group)
        for run in runs[rank]
        for start, stop in run.tolist()
    ]
    sending: deque[Handle] = deque()
    exchange = Exchange(group, parts, runs, out)
    for number, run in enumerate(runs[group.rank]):
        start, stop = run.tolist()[0]
        summed = out[start:stop]
        add(exchange.take(number), summed, dtype, exchange.overwritten)
        sending.extend(mesh.outbox.start(_key(group, rank, tag), summed) for rank in _others(group))
    exchange.finish()
    wait(group, [*receiving, *sending])


def _piece_bytes(group: "Group") -> int:
    """The same at all members; what one piece of everybody takes stays in the cache."""
    return min(PIECE_BYTES, ROUND_BYTES // (len(group.slots) * ALIGN_BYTES) * ALIGN_BYTES)


class Exchange:
    """Everyone's pieces of one's own share, a few at a time, in exchange for pieces of theirs.

    A member sends piece i + AHEAD when it has summed piece i, for which it needed piece i of all others. So nobody is
    more than AHEAD pieces behind another, and with 2 * AHEAD + 1 buffers per member nothing arrives unexpected, as
    long as shares are of one size. What does is kept until it is asked for.

    Args:
        parts: this member's slots, flat.
        runs: per member its pieces, as `spans.pieces` cuts them.
        out: where the sums go; may be one of `parts`.

    Attributes:
        overwritten: slots whose values are where the sums go, but for the first slot, which may be.
    """

    def __init__(
        self, group: "Group", parts: Sequence[np.ndarray], runs: Sequence[Sequence[np.ndarray]], out: np.ndarray
    ) -> None:
        self._group, self._parts, self._runs, self._tag = group, parts, runs, group.next_tag()
        self._others, self._own = _others(group), runs[group.rank]
        self._table = slot_table(group.slots)
        own = [index for index, (member, _) in enumerate(self._table) if member == group.mesh.worker_id]
        self.overwritten = [i for i, part in zip(own, parts, strict=False) if i and np.may_share_memory(part, out)]
        self._counts = [group.slots.count(group.members[rank]) for rank in range(group.size)]
        self._room = max((size_of(run) for run in self._own), default=0)
        self._posted: deque[tuple[list[Handle], dict[str, list[np.ndarray]]]] = deque()
        self._sending: deque[Handle] = deque()
        buffers = sum(self._counts) - self._counts[group.rank]
        self._scratch = group.mesh.scratch(self._room * buffers * DEPTH)
        for number in range(min(DEPTH, len(self._own))):
            self._post(number)
        for number in range(AHEAD):
            self._send(number)

    def take(self, number: int) -> list[np.ndarray]:
        """All slots' values of piece `number` of this member's share, in order of slots; valid until the next call."""
        if number:
            self._post(number - 1 + DEPTH)
        self._send(number + AHEAD)
        handles, buffers = self._posted.popleft()
        wait(self._group, handles)
        run = self._own[number]
        buffers[self._group.mesh.worker_id] = [piece_of(part, run) for part in self._parts]
        return [buffers[member][index] for member, index in self._table]

    def finish(self) -> None:
        """Send what the others still need, and wait until it is sent."""
        for number in range(len(self._own) + AHEAD, max(map(len, self._runs))):
            self._send(number)
        wait(self._group, self._sending)

    def _post(self, number: int) -> None:
        if number >= len(self._own):
            return
        group, size = self._group, size_of(self._own[number])
        place = number % DEPTH * (len(self._scratch) // DEPTH)
        handles: list[Handle] = []
        buffers: dict[str, list[np.ndarray]] = {}
        for rank in self._others:
            mine = buffers[group.members[rank]] = []
            for _ in range(self._counts[rank]):
                mine.append(self._scratch[place : place + size])
                handles.append(group.mesh.inbox.post(_key(group, rank, self._tag), mine[-1]))
                place += self._room
        self._posted.append((handles, buffers))

    def _send(self, number: int) -> None:
        group = self._group
        while self._sending and self._sending[0].done:
            self._sending.popleft()
        for rank in self._others:
            if number < len(self._runs[rank]):
                for part in self._parts:
                    piece = piece_of(part, self._runs[rank][number])
                    self._sending.append(group.mesh.outbox.start(_key(group, rank, self._tag), piece))


def piece_of(source: np.ndarray, run: np.ndarray) -> np.ndarray:
    """The bytes of `source` in `run`, without a copy when they are in one piece."""
    spans = run.tolist()
    if len(spans) == 1:
        return source[spans[0][0] : spans[0][1]]
    copy = np.empty(size_of(run), np.uint8)
    gather(source, run, copy)
    return copy
