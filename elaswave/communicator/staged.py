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


def _exchange(group: "Group", place: int) -> dict[str, np.ndarray]:
    """Tell all members of this worker's area, and get theirs."""
    tag = group.next_tag()
    ring(group, tag, group.peers, place)
    places = hear(group, tag, group.peers)
    return {peer: group.stage.of(peer, there) for peer, there in zip(group.peers, places, strict=True)}


def all_reduce(group: "Group", parts: list[np.ndarray], out: np.ndarray, dtype: torch.dtype) -> None:
    """Stage all slots, sum one slice of them each, collect the slices."""
    _enter(group)
    me, table = group.mesh.worker_id, inline.slot_table(group.slots)
    per_slot = STAGE_BYTES // max(index + 1 for _, index in table) // ALIGN_BYTES * ALIGN_BYTES
    for start in range(0, len(out), per_slot):
        size = min(per_slot, len(out) - start)
        bounds = aligned_bounds(size, group.size)
        low, high = bounds[group.rank], bounds[group.rank + 1]
        area, place = group.stage.turn()
        for index, part in enumerate(parts):
            area[index * per_slot : index * per_slot + size] = part[start : start + size]
        areas = {me: area, **_exchange(group, place)}
        summed, place = group.stage.turn()
        slices = [areas[member][i * per_slot + low : i * per_slot + high] for member, i in table]
        add(slices, summed[low:high], dtype)
        areas = {me: summed, **_exchange(group, place)}
        for rank, member in enumerate(group.members):
            a, b = bounds[rank], bounds[rank + 1]
            out[start + a : start + b] = areas[member][a:b]


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
            mine = area[own : own + size]
            gather(source, runs[group.rank][number], mine)
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


def aligned_bounds(num_bytes: int, parts: int) -> list[int]:
    """Bounds of nearly equal parts that begin at multiples of `ALIGN_BYTES`."""
    lines = -(-num_bytes // ALIGN_BYTES)
    return [min(num_bytes, lines * i // parts * ALIGN_BYTES) for i in range(parts + 1)]
