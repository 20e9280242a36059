"""Collectives whose payload rides in the sockets: small ones on one host, and all of them across hosts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from elaswave.communicator.rounds import collect, hear, ring, tell
from elaswave.communicator.spans import equal_spans, gather, pieces, scatter, size_of
from elaswave.communicator.sums import add
from elaswave.communicator.transfers import Handle

if TYPE_CHECKING:
    from elaswave.communicator.group import Group

PIECE_BYTES = 1 << 20
DIRECT_MEMBERS_MAX = 4
"""Up to here everyone tells everyone: one step instead of two, and not yet many more messages."""
_NOTHING = np.empty(0, np.uint8)


def _key(group: "Group", rank: int, tag: int) -> tuple[str, int, int, int]:
    return (group.members[rank], group.id, group.epoch, tag)


def _wait(group: "Group", handles: Sequence[Handle]) -> None:
    pending = list(handles)

    def done() -> bool:
        while pending and pending[-1].done:
            pending.pop()
        return not pending

    group.mesh.wait(done, what=lambda: f"{len(pending)} messages in group {group.name}")


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
        _wait(group, [mesh.start_send(_key(group, rank, tag), data) for rank in _others(group)])
    else:
        _wait(group, [mesh.start_receive(_key(group, src, tag), data)])


def all_reduce(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Everyone gets everyone's slots and sums in order of slots; in larger groups the first member does it for all."""
    tag, size = group.next_tag(), len(out)
    packed = np.concatenate([*parts, _NOTHING])  # a copy: `out` may be one of the parts
    direct = group.size <= DIRECT_MEMBERS_MAX
    if direct or group.rank:
        tell(group, tag, group.peers if direct else group.members[:1], packed)
    if not direct and group.rank:
        out[:] = collect(group, tag, group.members[:1], [size])[0]
        return
    slots = group.slots
    received = collect(group, tag, group.peers, [slots.count(peer) * size for peer in group.peers])
    if slots is group.members:
        received.insert(group.rank, packed)
        add(received, out, dtype)
    else:
        by_member = dict(zip(group.peers, received, strict=True)) | {group.mesh.worker_id: packed}
        add([by_member[member][i * size : (i + 1) * size] for member, i in slot_table(slots)], out, dtype)
    if not direct:
        tell(group, tag, group.peers, out)


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
        tell(group, tag, group.peers if direct else group.members[:1], source)
    if not direct and group.rank:
        out[:] = collect(group, tag, group.members[:1], [len(out)])[0]
        return
    received = collect(group, tag, group.peers, [size_of(cuts[rank]) for rank in group.peer_ranks])
    scatter(source, cuts[group.rank], out)
    for rank, part in zip(group.peer_ranks, received, strict=True):
        scatter(part, cuts[rank], out)
    if not direct:
        tell(group, tag, group.peers, out)


def reduce_scatter(
    group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray], dtype: torch.dtype
) -> None:
    """Everyone sends everyone its part in pieces, and sums each piece as soon as all have sent it."""
    tag, mesh, me = group.next_tag(), group.mesh, group.rank
    own = pieces(cuts[me], PIECE_BYTES)
    buffers = {rank: np.empty(len(out), np.uint8) for rank in _others(group)}
    receiving: list[list[Handle]] = []
    done = 0
    for run in own:
        size = size_of(run)
        receiving.append([mesh.start_receive(_key(group, r, tag), b[done : done + size]) for r, b in buffers.items()])
        done += size
    runs = {rank: pieces(cuts[rank], PIECE_BYTES) for rank in _others(group)}
    sending = [
        mesh.start_send(_key(group, rank, tag), _piece(source, runs[rank][number]))
        for number in range(max((len(run) for run in runs.values()), default=0))
        for rank in runs
        if number < len(runs[rank])
    ]
    done = 0
    for run, handles in zip(own, receiving, strict=True):
        _wait(group, handles)
        size = size_of(run)
        mine = _piece(source, run)
        ordered = [mine if r == me else buffers[r][done : done + size] for r in range(group.size)]
        add(ordered, out[done : done + size], dtype)
        done += size
    _wait(group, sending)


def all_gather(group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray]) -> None:
    """Everyone sends everyone its part; whole spans are received in place."""
    tag, mesh = group.next_tag(), group.mesh
    receiving = []
    for rank in _others(group):
        for run in pieces(cuts[rank], PIECE_BYTES):
            for start, stop in run.tolist():
                receiving.append(mesh.start_receive(_key(group, rank, tag), out[start:stop]))
    sending, done = [], 0
    for run in pieces(cuts[group.rank], PIECE_BYTES):
        for start, stop in run.tolist():
            part = source[done : done + stop - start]
            sending += [mesh.start_send(_key(group, rank, tag), part) for rank in _others(group)]
            out[start:stop] = part
            done += stop - start
    _wait(group, [*receiving, *sending])


def all_reduce_large(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Reduce-scatter, then all-gather; with several slots per member, slot by slot at the members that sum."""
    width = torch.empty(0, dtype=dtype).element_size()
    cuts = [np.array(spans, np.int64).reshape(-1, 2) * width for spans in equal_spans(len(out) // width, group.size)]
    start, stop = cuts[group.rank].tolist()[0]
    if group.slots == group.members:
        mine = np.empty(stop - start, np.uint8)
        reduce_scatter(group, parts[0], mine, cuts, dtype)
    else:
        mine = _sum_slots(group, parts, cuts, dtype)
    all_gather(group, mine, out, cuts)


def _sum_slots(group: "Group", parts: list[np.ndarray], cuts: list[np.ndarray], dtype: torch.dtype) -> np.ndarray:
    """This member's slice of the sum over all slots, in order of slots."""
    tag, mesh = group.next_tag(), group.mesh
    start, stop = cuts[group.rank].tolist()[0]
    received: dict[str, list[np.ndarray]] = {}
    handles: list[Handle] = []
    for rank in _others(group):
        member = group.members[rank]
        received[member] = [np.empty(stop - start, np.uint8) for _ in range(group.slots.count(member))]
        handles += [mesh.start_receive(_key(group, rank, tag), buffer) for buffer in received[member]]
    for rank in _others(group):
        a, b = cuts[rank].tolist()[0]
        handles += [mesh.start_send(_key(group, rank, tag), part[a:b]) for part in parts]
    received[mesh.worker_id] = [part[start:stop] for part in parts]
    _wait(group, handles)
    turns = {member: iter(slices) for member, slices in received.items()}
    out = np.empty(stop - start, np.uint8)
    add([next(turns[member]) for member in group.slots], out, dtype)
    return out


def _piece(source: np.ndarray, run: np.ndarray) -> np.ndarray:
    """The bytes of `source` in `run`, without a copy when they are in one piece."""
    spans = run.tolist()
    if len(spans) == 1:
        return source[spans[0][0] : spans[0][1]]
    copy = np.empty(size_of(run), np.uint8)
    gather(source, run, copy)
    return copy
