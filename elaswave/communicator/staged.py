"""Collectives through shared memory: everyone writes to its own staging area and reads the others'."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from elaswave.communicator import inline
from elaswave.communicator.arena import STAGE_BYTES
from elaswave.communicator.rounds import hear, ring
from elaswave.communicator.spans import gather, pieces, scatter, size_of
from elaswave.communicator.sums import add

if TYPE_CHECKING:
    from elaswave.communicator.group import Group

ALIGN_BYTES = 64


def _enter(group: "Group") -> None:
    if not group.stage.entered:
        inline.barrier(group)
        group.stage.entered = True


def _announce(group: "Group", place: int) -> int:
    """Tell all members of this worker's area; returns the tag of the round."""
    tag = group.next_tag()
    ring(group, tag, group.peers, place)
    return tag


def _areas(group: "Group", tag: int) -> dict[str, np.ndarray]:
    """The other members' areas, once all have told of them in the round of `tag`."""
    places = hear(group, tag, group.peers)
    return {peer: group.stage.of(peer, place) for peer, place in zip(group.peers, places, strict=True)}


def _exchange(group: "Group", place: int) -> dict[str, np.ndarray]:
    """Tell all members of this worker's area, and get theirs."""
    return _areas(group, _announce(group, place))


def all_reduce(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Stage all slots, sum one slice of them each, collect the slices.

    The next chunk is staged before the slices of this one are collected, so that few have to wait. It goes to the
    other area, whose slots all have read before they told of this chunk's slices. Slices lie behind the slots of
    their chunk; all have collected those of two chunks ago before they told of this chunk's slots.
    """
    _enter(group)
    me, table = group.mesh.worker_id, inline.slot_table(group.slots)
    num_slots = max(index + 1 for _, index in table)
    per_slot = STAGE_BYTES * group.size // (num_slots * group.size + 1) // ALIGN_BYTES * ALIGN_BYTES - ALIGN_BYTES
    behind = num_slots * per_slot

    def stage(start: int) -> tuple[np.ndarray, int]:
        """Copy a chunk, without the slice that nobody else reads, to the next area."""
        size = min(per_slot, len(out) - start)
        low, high = slice_of(size, group.size, group.rank)
        area, place = group.stage.turn()
        for index, part in enumerate(parts):
            base = index * per_slot
            area[base : base + low] = part[start : start + low]
            area[base + high : base + size] = part[start + high : start + size]
        return area, _announce(group, place)

    area, staged = stage(0)
    for start in range(0, len(out), per_slot):
        size = min(per_slot, len(out) - start)
        low, high = slice_of(size, group.size, group.rank)
        areas = _areas(group, staged)
        slices = [
            parts[i][start + low : start + high]
            if member == me
            else areas[member][i * per_slot + low : i * per_slot + high]
            for member, i in table
        ]
        summed = area[behind : behind + high - low]
        add(slices, summed, dtype)
        told = _announce(group, group.stage.place)
        if start + per_slot < len(out):
            area, staged = stage(start + per_slot)
        out[start + low : start + high] = summed
        hear(group, told, group.peers)
        for rank, peer in zip(group.peer_ranks, group.peers, strict=True):
            a, b = slice_of(size, group.size, rank)
            out[start + a : start + b] = areas[peer][behind : behind + b - a]


def reduce_scatter(
    group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray], dtype: torch.dtype
) -> None:
    """In every round each member stages a piece for every other, and sums the piece that is its own."""
    _enter(group)
    room = STAGE_BYTES // group.size // ALIGN_BYTES * ALIGN_BYTES
    runs = [pieces(cut, room) for cut in cuts]
    done, own = 0, group.rank * room
    for number in range(max(len(run) for run in runs)):
        area, place = group.stage.turn()
        for rank, run in enumerate(runs):
            if number < len(run) and rank != group.rank:
                gather(source, run[number], area[rank * room :])
        areas = _exchange(group, place)
        if number < len(runs[group.rank]):
            size = size_of(runs[group.rank][number])
            mine = inline.piece_of(source, runs[group.rank][number])
            parts = [mine if m == group.mesh.worker_id else areas[m][own : own + size] for m in group.members]
            add(parts, out[done : done + size], dtype)
            done += size


def all_gather(group: "Group", source: np.ndarray, out: np.ndarray, cuts: list[np.ndarray]) -> None:
    """In every round each member stages a piece of its own, and copies those of the others."""
    _enter(group)
    runs = [pieces(cut, STAGE_BYTES) for cut in cuts]
    done = 0
    for number in range(max(len(run) for run in runs)):
        area, place = group.stage.turn()
        if number < len(runs[group.rank]):
            run = runs[group.rank][number]
            size = size_of(run)
            area[:size] = source[done : done + size]
            scatter(source[done : done + size], run, out)
            done += size
        areas = _exchange(group, place)
        for rank, member in enumerate(group.members):
            if rank != group.rank and number < len(runs[rank]):
                scatter(areas[member], runs[rank][number], out)


def slice_of(num_bytes: int, num_slices: int, index: int) -> tuple[int, int]:
    """Bounds of one of nearly equal slices that begin at multiples of `ALIGN_BYTES`."""
    lines = -(-num_bytes // ALIGN_BYTES)
    low, high = (min(num_bytes, lines * i // num_slices * ALIGN_BYTES) for i in (index, index + 1))
    return low, high
