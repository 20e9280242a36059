"""Collectives and messages of this communicator beside gloo's: four ranks, the same tensors, in turns.

gloo is warm, with one torch thread as the others, in place where they are in place, and called through
torch.distributed as a training script would. P2P is a ping-pong between ranks 0 and 1, counted one way.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from elaswave.bench.forked import Rank, run_ranks, store_server
from elaswave.bench.result import Metrics, Spread, Target, at_least, paired_ratios, ratio_median, spread
from elaswave.communicator.group import Group, GroupSpec
from elaswave.communicator.mesh import Mesh
from elaswave.config import Transport

RANKS = 4
SIZES = {"4 KiB": 4 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}
CALLS = {"4 KiB": 50, "1 MiB": 10, "64 MiB": 1}
"""Calls per timed lap, so that a lap is long beside the clock and the wake-up of the ranks."""
OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather", "P2P")
GLOO, SHM, TCP = "gloo", "shared memory", "TCP"
CONTENDERS = (GLOO, SHM, TCP)
TIMEOUT_S = 60.0
WARM_UP = 1

Call = Callable[[], object]

# newer releases of torch have these under another name, and warn about the old one
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Contestant:
    """One forked rank with gloo and two meshes, all kept for the whole measurement."""

    def __init__(self, me: Rank, port: int) -> None:
        torch.set_num_threads(1)
        self.me = me
        store = dist.TCPStore("127.0.0.1", port, None, False, timeout=timedelta(seconds=TIMEOUT_S))
        dist.init_process_group(
            "gloo", store=store, rank=me.rank, world_size=me.size, timeout=timedelta(seconds=TIMEOUT_S)
        )
        self.meshes = {SHM: self._mesh(Transport.SHM), TCP: self._mesh(Transport.TCP)}

    def _mesh(self, transport: Transport) -> Mesh:
        name = f"{self.me.rank:012x}"
        mesh = Mesh(worker_id=name, host_id="bench", secret=bytes(32), transport=transport, timeout_s=TIMEOUT_S)
        ids = tuple(f"{rank:012x}" for rank in range(self.me.size))
        mesh.edit(1, dict(zip(ids, self.me.exchange(mesh.address), strict=True)), {"world": GroupSpec(ids)})
        return mesh

    def run(self, repetitions: int) -> dict[str, list[list[float]]]:
        """Laps of every operation, size and contender, as [wall seconds, CPU seconds] of one call."""
        laps: dict[str, list[list[float]]] = {}
        for size, size_bytes in SIZES.items():
            whole, part = torch.ones(size_bytes // 4), torch.ones(size_bytes // 4 // self.me.size)
            for operation in OPERATIONS:
                calls = {name: self._call(name, operation, whole, part) for name in CONTENDERS}
                for repetition in range(WARM_UP + repetitions):
                    first = repetition % len(CONTENDERS)
                    for name in CONTENDERS[first:] + CONTENDERS[:first]:
                        whole.zero_()
                        lap = self._lap(calls[name], CALLS[size] if repetition >= WARM_UP else 1)
                        if repetition >= WARM_UP:
                            laps.setdefault(f"{operation} {size} {name}", []).append(lap)
        self.me.meet()  # others may still read from this rank
        for mesh in self.meshes.values():
            mesh.close()
        dist.destroy_process_group()
        return laps

    def _lap(self, call: Call, calls: int) -> list[float]:
        start = self.me.meet()
        cpu_s = time.process_time()
        for _ in range(calls):
            call()
        return [(time.monotonic() - start) / calls, (time.process_time() - cpu_s) / calls]

    def _call(self, name: str, operation: str, whole: torch.Tensor, part: torch.Tensor) -> Call:
        if operation == "P2P":
            return self._ping_pong(name, whole)
        if name == GLOO:
            return {
                "all_reduce": lambda: dist.all_reduce(whole),
                "reduce_scatter": lambda: _REDUCE_SCATTER(part, whole),
                "all_gather": lambda: _ALL_GATHER(whole, part),
            }[operation]
        group = self.meshes[name].group("world")
        return {
            "all_reduce": lambda: group.all_reduce(whole),
            "reduce_scatter": lambda: group.reduce_scatter(whole, part),
            "all_gather": lambda: group.all_gather(part, whole),
        }[operation]

    def _ping_pong(self, name: str, x: torch.Tensor) -> Call:
        if self.me.rank > 1:
            return lambda: None
        other = 1 - self.me.rank
        group: Group | None = None if name == GLOO else self.meshes[name].group("world")
        send: Call = (lambda: dist.send(x, other)) if group is None else (lambda: group.send(x, other))
        receive: Call = (lambda: dist.recv(x, other)) if group is None else (lambda: group.recv(x, other))
        first, second = (send, receive) if self.me.rank == 0 else (receive, send)
        return lambda: (first(), second())


def measure(repetitions: int, timeout_s: float) -> dict[str, dict[str, list[float]]]:
    """Contender -> metric -> milliseconds per call, one value per repetition; wall of the slowest rank, CPU of all."""
    with store_server(timeout_s) as port:
        ranks = run_ranks(RANKS, lambda me: Contestant(me, port).run(repetitions), timeout_s)
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    for operation in OPERATIONS:
        involved, ways = (ranks[:2], 2) if operation == "P2P" else (ranks, 1)
        for size in SIZES:
            for name in CONTENDERS:
                laps = [rank[f"{operation} {size} {name}"] for rank in involved]
                wall = [1e3 * max(rank[n][0] for rank in laps) / ways for n in range(repetitions)]
                cpu = [1e3 * sum(rank[n][1] for rank in laps) / ways for n in range(repetitions)]
                measured[name] |= {f"{operation} {size}, ms": wall, f"{operation} {size}, cpu_ms": cpu}
    return measured


def ratios_of(measured: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Spread]:
    """How many times as long gloo takes."""
    return {
        f"{GLOO} / {name}, {operation} {size}": spread(
            paired_ratios(measured[GLOO][f"{operation} {size}, ms"], measured[name][f"{operation} {size}, ms"])
        )
        for name in (SHM, TCP)
        for operation in OPERATIONS
        for size in SIZES
    }


def targets_of(ratios: Mapping[str, Spread]) -> list[Target]:
    """Shared memory is faster everywhere; TCP no slower up to 1 MiB, and within 1.25 times gloo's time at 64 MiB."""
    targets = []
    for name in ratios:
        if SHM in name:
            targets.append(at_least(name, ratio_median(ratios, name), 1.0))
        else:
            targets.append(at_least(name, ratio_median(ratios, name), 0.8 if "64 MiB" in name else 1.0))
    return targets


def summary(measured: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Metrics]:
    return {name: {metric: spread(values) for metric, values in metrics.items()} for name, metrics in measured.items()}
