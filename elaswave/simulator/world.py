"""The control plane of a simulated job: the production detector and membership, fed by a virtual clock."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from elaswave.coordination.detector import NodeSigns, Standing, WorkerSigns, examine_node, examine_worker
from elaswave.coordination.membership import NodeState, State, vacancies_after, view_compute
from elaswave.coordination.protocol import Fate, WorkerRecord
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import ElasWaveError
from elaswave.simulator.failures import Cluster, Kind
from elaswave.topology import View


def detected_s(kind: Kind, timeouts: Timeouts) -> float:
    """From a failure until the detector tells it, at the pace of heartbeats.

    Raises:
        ElasWaveError: the detector never does.
    """
    for beat in range(round(10 * timeouts.suspicion_s / timeouts.heartbeat_s) + 1):
        passed_s = beat * timeouts.heartbeat_s
        if _seen(kind, passed_s, timeouts):
            return passed_s
    raise ElasWaveError(f"the detector does not see that a worker is {kind.name}")


def _seen(kind: Kind, passed_s: float, timeouts: Timeouts) -> bool:
    """Whether the detector tells, so long after a failure."""
    if kind is Kind.RACK_DOWN:
        signs = NodeSigns(disconnected_s=passed_s, patience_s=timeouts.reconnect_s, silence_s=passed_s)
        return examine_node(signs, timeouts) is Standing.UNKNOWN
    hangs = kind is Kind.HANGS
    return examine_worker(WorkerSigns(abandoned=not hangs, silence_s=passed_s), timeouts) is not None


class World:
    """All nodes, as the primary sees them, and the newest view.

    Args:
        cluster: whose workers the job has from the beginning, in order of rank.
        min_workers: with fewer the job waits.
        timeouts: of the control plane.
    """

    def __init__(self, cluster: Cluster, min_workers: int, timeouts: Timeouts) -> None:
        self._cluster, self._timeouts = cluster, timeouts
        self._born = [0] * cluster.ranks
        nodes = [range(first, min(first + cluster.per_node, cluster.ranks)) for first in self._firsts()]
        self._nodes = {
            f"node {number}": NodeState(
                node_id=f"node {number}",
                host_id=f"node {number}",
                index=number,
                standing=Standing.LIVE,
                expected_workers=len(ranks),
                workers=tuple(self._record(rank) for rank in ranks),
            )
            for number, ranks in enumerate(nodes)
        }
        self._state = State(view=None, nodes=self._nodes, min_workers=min_workers)
        self.view = self._next(0.0)

    def lose(self, ranks: Collection[int], kind: Kind, now_s: float) -> View:
        """The view without these workers."""
        for number in {self._cluster.node_of(rank) for rank in ranks}:
            node = self._node(number)
            gone = {self._name(rank) for rank in ranks if self._cluster.node_of(rank) == number}
            left = tuple(worker for worker in node.workers if worker.worker_id not in gone)
            if kind is Kind.RACK_DOWN:
                changed = replace(node, workers=left, standing=Standing.UNKNOWN)
            else:
                changed = replace(node, workers=left, fates=dict.fromkeys(gone, Fate.LOST))
            self._nodes[node.node_id] = changed
        return self._next(now_s)

    def join(self, ranks: Iterable[int], now_s: float) -> View:
        """The view in which new workers run on these devices."""
        for rank in ranks:
            self._born[rank] += 1
            node = self._node(self._cluster.node_of(rank))
            workers = (*node.workers, self._record(rank))
            self._nodes[node.node_id] = replace(node, workers=workers, standing=Standing.LIVE)
        return self._next(now_s)

    def _next(self, now_s: float) -> View:
        view, reason = view_compute(now_s, self._state)
        if view is None:
            raise ElasWaveError(f"no view at {now_s:.3f} s: {reason}")
        vacancies = vacancies_after(self._state, list(view.members))
        for node in list(self._nodes.values()):
            if node.fates:
                self._nodes[node.node_id] = replace(node, fates={})
        self._state = replace(
            self._state, view=view, nodes=self._nodes, vacancies=vacancies, next_epoch=self._state.next_epoch + 1
        )
        self.view = view
        return view

    def _firsts(self) -> range:
        return range(0, self._cluster.ranks, self._cluster.per_node)

    def _node(self, number: int) -> NodeState:
        return self._nodes[f"node {number}"]

    def _name(self, rank: int) -> str:
        return f"{rank:06x}{self._born[rank]:06x}"

    def _record(self, rank: int) -> WorkerRecord:
        return WorkerRecord(
            worker_id=self._name(rank),
            pid=0,
            local_rank=rank % self._cluster.per_node,
            address={},
            config_digest="",
            versions={},
            replaces=f"{rank:06x}{self._born[rank] - 1:06x}" if self._born[rank] else "",
            member=False,
        )
