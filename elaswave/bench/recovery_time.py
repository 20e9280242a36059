"""How long communication takes to work again after a rank is gone: edited in place, rebuilt in part, rebuilt whole.

Ranks form a grid of data-parallel and pipeline groups. All survivors learn of the loss at the same instant; the clock
stops when the first all-reduce on each repaired group is done, on the slowest survivor. Then, from another common
instant on, every contender uses all other groups once, so that nothing of the repair is left for later unseen.
Contenders take turns in the same processes, with one torch thread, the same 4 KiB tensor, and warm code. The rebuilds
get what helps them: a store that outlives the loss, in a process of its own; groups of earlier repetitions destroyed
off the clock; and the full rebuild also with TORCH_GLOO_LAZY_INIT=1, which connects pairs only when they are first
used.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from elaswave.bench.forked import Rank, run_ranks, store_server
from elaswave.bench.result import Metrics, Spread, Target, at_least, below, paired_ratios, ratio_median, spread
from elaswave.communicator import rebuild
from elaswave.communicator.group import GroupSpec
from elaswave.communicator.mesh import Mesh
from elaswave.config import Transport
from elaswave.errors import BenchError

GRIDS = {4: (4, 1), 8: (4, 2), 16: (4, 4), 32: (8, 4)}
"""Ranks -> (data-parallel size, pipeline stages); rank = pipeline * stages + stage."""
EDIT, EDIT_TCP = "edit", "edit over TCP"
PARTIAL, PARTIAL_BARE = "partial rebuild (new_group)", "partial rebuild (bare ProcessGroupGloo)"
FULL, FULL_LAZY = "full rebuild", "full rebuild (TORCH_GLOO_LAZY_INIT=1)"
CONTENDERS = (EDIT, EDIT_TCP, PARTIAL, PARTIAL_BARE, FULL, FULL_LAZY)
LAZY = "TORCH_GLOO_LAZY_INIT"
ELEMENTS = 1024
TIMEOUT_S = 60.0
QUIET_S = 0.05

Groups = dict[str, list[int]]
Lap = tuple[float, float, float]
"""Seconds until the repaired groups have been used, seconds to use the others, and CPU seconds of the former."""
AllReduce = Callable[[str, torch.Tensor], object]
"""In a group of this rank, by name."""


def groups_of(size: int) -> Groups:
    """Data-parallel groups, then pipeline groups, of more than one rank."""
    replicas, stages = GRIDS[size]
    groups = {f"data {s}": [p * stages + s for p in range(replicas)] for s in range(stages)}
    groups |= {f"pipeline {p}": [p * stages + s for s in range(stages)] for p in range(replicas)}
    return {name: members for name, members in groups.items() if len(members) > 1}


def without(groups: Mapping[str, Sequence[int]], lost: int) -> Groups:
    return {name: [member for member in members if member != lost] for name, members in groups.items()}


class Contestant:
    """One forked rank: prepares, loses the last rank, and repairs, by every way in turn."""

    def __init__(self, me: Rank, port: int) -> None:
        torch.set_num_threads(1)
        self.me, self.lost = me, me.size - 1
        self.alive = list(range(me.size - 1))
        self.groups = groups_of(me.size)
        self.repaired = without({name: g for name, g in self.groups.items() if self.lost in g}, self.lost)
        self.order = sorted((n for n, g in self.groups.items() if me.rank in g), key=lambda n: n not in self.repaired)
        self.store = dist.TCPStore("127.0.0.1", port, None, False, timeout=timedelta(seconds=TIMEOUT_S))
        self.laps: dict[str, list[Lap | None]] = {name: [] for name in CONTENDERS}
        self.meshes = {EDIT: self._mesh(Transport.SHM), EDIT_TCP: self._mesh(Transport.TCP)}
        self.addresses = {name: self.me.exchange(mesh.address) for name, mesh in self.meshes.items()}
        self.epoch = 0
        self._prefix = 0

    def run(self, repetitions: int) -> dict[str, list[Lap | None]]:
        """Repeat all contenders, starting with another one each time."""
        for mesh in self.meshes:
            self._prepare(mesh, self.groups)()
        turns = [self._partial, lambda: self._full(FULL, "0"), lambda: self._full(FULL_LAZY, "1")]
        turns += [lambda: self._edited(EDIT), lambda: self._edited(EDIT_TCP)]
        for repetition in range(repetitions + 1):  # the first warms everything up
            first = repetition % len(turns)
            for turn in turns[first:] + turns[:first]:
                turn()
        for mesh in self.meshes.values():
            mesh.close()
        return {name: laps[-repetitions:] for name, laps in self.laps.items()}

    # -- the clock ---------------------------------------------------------------------------------------------

    def _timed(self, name: str, repair: Callable[[], AllReduce]) -> None:
        """Time one repair; `repair` returns a function that all-reduces in a group."""
        tensors = {group: torch.ones(ELEMENTS) for group in self.order}
        survivors = without(self.groups, self.lost)
        mine = [group for group in self.order if len(survivors[group]) > 1 and self.me.rank != self.lost]
        start = self.me.meet()
        if self.me.rank == self.lost:
            self._meet_later()
            self.me.meet()
            self.laps[name].append(None)
            return
        cpu_s = time.process_time()
        all_reduce = repair()
        for group in mine:
            if group in self.repaired:
                all_reduce(group, tensors[group])
        repaired_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_s
        start = self._meet_later()
        for group in mine:
            if group not in self.repaired:
                all_reduce(group, tensors[group])
        self.laps[name].append((repaired_s, time.monotonic() - start, cpu_s))
        self._meet_later()
        for group in mine:
            if float(tensors[group][0]) != len(survivors[group]):
                raise BenchError(f"{name}: the sum in group {group} is wrong: {float(tensors[group][0])}")

    def _meet_later(self) -> float:
        """Ranks that are done do not wake the parent, which takes CPU time, while others are still at it."""
        time.sleep(QUIET_S)
        return self.me.meet()

    # -- rebuilds ----------------------------------------------------------------------------------------------

    def _fresh(self) -> str:
        self._prefix += 1
        return f"attempt-{self._prefix}"

    def _world(self) -> dict[str, dist.ProcessGroup]:
        """All ranks, all groups, each used once."""
        everyone = [*self.alive, self.lost]
        made = rebuild.build(self.store, self._fresh(), self.me.rank, everyone, self.groups, TIMEOUT_S)
        for group in self.order:
            dist.all_reduce(torch.ones(ELEMENTS), group=made[group])
        return made

    def _partial(self) -> None:
        world = self._world()
        untouched = {name: group for name, group in world.items() if name not in self.repaired}
        self.me.meet()
        made: dict[str, Any] = {}

        def by_new_group() -> AllReduce:
            made.update(rebuild.partial(self.me.rank, self.repaired))
            groups = {**untouched, **made}
            return lambda group, x: dist.all_reduce(x, group=groups[group])

        def by_constructor() -> AllReduce:
            made.update(rebuild.partial_bare(self.store, prefix, self.me.rank, self.repaired, TIMEOUT_S))
            groups = {**untouched, **made}
            return lambda group, x: groups[group].allreduce([x]).wait()

        self._timed(PARTIAL, by_new_group)
        for group in made.values():
            dist.destroy_process_group(group)
        made.clear()
        prefix = self._fresh()
        self._timed(PARTIAL_BARE, by_constructor)
        made.clear()
        untouched.clear()
        world.clear()
        self._destroy()

    def _full(self, name: str, lazy: str) -> None:
        with environment(LAZY, lazy):
            untouched = self._world()
            untouched.clear()
            prefix = self._fresh()

            def repair() -> AllReduce:
                made = rebuild.full(self.store, prefix, self.me.rank, self.alive, self.groups, TIMEOUT_S)
                return lambda group, x: dist.all_reduce(x, group=made[group])

            self._timed(name, repair)
            self._destroy()

    def _destroy(self) -> None:
        dist.destroy_process_group()
        self.me.meet()

    # -- edits -------------------------------------------------------------------------------------------------

    def _mesh(self, transport: Transport) -> Mesh:
        return Mesh(
            worker_id=worker_id(self.me.rank),
            host_id="bench",
            secret=bytes(32),
            transport=transport,
            timeout_s=TIMEOUT_S,
        )

    def _prepare(self, name: str, groups: Groups) -> Callable[[], None]:
        """The edit to the next epoch with these groups, as a call whose arguments are ready."""
        self.epoch += 1
        members = {member for group in groups.values() for member in group}
        specs = {
            group: GroupSpec(tuple(worker_id(member) for member in ranks))
            for group, ranks in groups.items()
            if self.me.rank in ranks
        }
        addresses = {worker_id(member): self.addresses[name][member] for member in members}
        return partial(self.meshes[name].edit, self.epoch, addresses, specs)

    def _edited(self, name: str) -> None:
        mesh = self.meshes[name]
        shrink = self._prepare(name, without(self.groups, self.lost))

        def repair() -> AllReduce:
            shrink()
            return lambda group, x: mesh.group(group).all_reduce(x)

        self._timed(name, repair)
        grow = self._prepare(name, self.groups)
        mesh.poll()
        if self.me.rank == self.lost:
            mesh.wait(lambda: not mesh.links)  # the survivors have closed them
        self.me.meet()
        grow()
        for group in self.order:
            mesh.group(group).all_reduce(torch.ones(ELEMENTS))
        self.me.meet()


def worker_id(rank: int) -> str:
    return f"{rank:012x}"


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for a while; gloo reads it when it makes a device."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def measure(size: int, repetitions: int, timeout_s: float) -> dict[str, dict[str, list[float]]]:
    """Contender -> metric -> one value per repetition, milliseconds; the slowest survivor's."""
    with store_server(timeout_s) as port:
        ranks = run_ranks(size, lambda me: Contestant(me, port).run(repetitions), timeout_s)
    survivors = ranks[:-1]

    def slowest(name: str, column: int, n: int) -> float:
        return 1e3 * max(laps[name][n][column] for laps in survivors)

    return {
        name: {
            "recovered_ms": [slowest(name, 0, n) for n in range(repetitions)],
            "every_group_used_ms": [slowest(name, 0, n) + slowest(name, 1, n) for n in range(repetitions)],
            "cpu_per_rank_ms": [
                1e3 * sum(laps[name][n][2] for laps in survivors) / len(survivors) for n in range(repetitions)
            ],
        }
        for name in CONTENDERS
    }


def ratios_of(measured: Mapping[str, Mapping[str, Sequence[float]]], size: int) -> dict[str, Spread]:
    """Ratios to the edit, by what repairing the groups takes, and by what it takes until every group was used."""

    def ratio(name: str, metric: str = "recovered_ms") -> Spread:
        return spread(paired_ratios(measured[name][metric], measured[EDIT][metric]))

    ratios = {f"{name} / {EDIT}, {size} ranks": ratio(name) for name in CONTENDERS if name != EDIT}
    best = [
        min(pair)
        for pair in zip(measured[PARTIAL]["recovered_ms"], measured[PARTIAL_BARE]["recovered_ms"], strict=True)
    ]
    ratios[f"faster partial rebuild / {EDIT}, {size} ranks"] = spread(
        paired_ratios(best, measured[EDIT]["recovered_ms"])
    )
    for name in (FULL, FULL_LAZY):
        ratios[f"{name} / {EDIT}, every group used, {size} ranks"] = ratio(name, "every_group_used_ms")
    return ratios


def targets_of(contenders: Mapping[str, Metrics], ratios: Mapping[str, Spread], sizes: Sequence[int]) -> list[Target]:
    """What is promised at 16 and 32 ranks."""
    targets = []
    for size in sizes:
        if size < 16:
            continue
        full = f"{FULL} / {EDIT}, {size} ranks"
        partial = f"faster partial rebuild / {EDIT}, {size} ranks"
        targets.append(at_least(full, ratio_median(ratios, full), 82))
        targets.append(at_least(partial, ratio_median(ratios, partial), 3.6))
    if 32 in sizes:
        edit = contenders[EDIT]["recovered_ms, 32 ranks"].median
        targets.append(below("edit at 32 ranks, ms", edit, 15))
    return targets
