"""How long a step takes under each policy, for jobs of any size: loads of the busiest, and the time to fill a pipeline.

`elaswave.simulator.pipeline` runs every operation; what is here is a closed form of a policy's decision, in units of
the layers' costs, that looks at how many workers each stage has. Ours is the production planner for very many workers
(`elaswave.planner.scale`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from elaswave.baselines.oobleck import ROOM
from elaswave.config import Schedule
from elaswave.planner.graph import cut
from elaswave.planner.profile import Profile
from elaswave.planner.scale import PASSES, plan_at_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a job computes.

    Attributes:
        profile: of the model.
        stages: P.
        micro_batches: of a step, over the whole job.
        schedule: of the job; decides how long a pipeline takes to fill and to drain.
    """

    profile: Profile
    stages: int
    micro_batches: int
    schedule: Schedule

    def filling(self, depth: int, schedule: Schedule) -> float:
        """What filling and draining a pipeline of equal stages adds to the load of its members."""
        turns = 1 if schedule is Schedule.SPLIT else PASSES
        return turns * sum(self.profile.costs) * (depth - 1) / depth


def elaswave(work: Workload, alive: np.ndarray) -> float:
    """Time of a step in the production planner's plan; infinite with nobody left."""
    if not alive.any():
        return math.inf
    plan = plan_at_scale(alive, work.stages, work.profile, work.micro_batches)
    depth = max(1, sum(len(members) > 0 for members in plan.members))
    return float(plan.loads.max()) + work.filling(depth, work.schedule)


def torchft(work: Workload, alive: np.ndarray) -> float:
    """The same where only whole replicas work."""
    return _replicas(work, int(_whole(work, alive).sum()))


def restart(work: Workload, alive: np.ndarray) -> float:
    """The same where workers are given out anew to whole replicas."""
    return _replicas(work, int(alive.sum()) // work.stages)


def recycle(work: Workload, alive: np.ndarray) -> float:
    """The same where peers of a stage share, stages are as even as can be, and bubbles are filled."""
    smallest = int(alive.sum()) // work.stages
    return _load(work, work.stages, smallest) if smallest else math.inf


def oobleck(work: Workload, alive: np.ndarray) -> float:
    """The same in pipelines from templates of at most two sizes, each with its own share of the batch."""
    count = int(alive.sum())
    for pipelines in range(math.ceil(count / work.stages), 0, -1):
        small, larger = divmod(count, pipelines)
        if small > len(work.profile.costs) - (larger > 0):
            break
        if small >= work.stages / ROOM:
            return _templates(work, {small: pipelines - larger, small + 1: larger})
    return math.inf


def busy(policy: str, work: Workload, alive: np.ndarray) -> np.ndarray:
    """Whose loss interrupts a step, (ranks,) bool: all but those that a policy lets idle."""
    if policy == "torchft":
        whole = _whole(work, alive)
        return np.append(np.repeat(whole, work.stages), np.zeros(len(alive) - len(whole) * work.stages, bool))
    if policy == "restart":
        return alive & (np.cumsum(alive) <= int(alive.sum()) // work.stages * work.stages)
    return alive


Times = Callable[[Workload, np.ndarray], float]
TIMES: Mapping[str, Times] = {
    "elaswave": elaswave,
    "torchft": torchft,
    "recycle": recycle,
    "oobleck": oobleck,
    "restart": restart,
}


@dataclass(slots=True)
class Periods:
    """Step times that were asked for are known."""

    work: Workload
    _known: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def of(self, policy: str, alive: np.ndarray) -> float:
        """Time of a step under a policy with these workers, (ranks,) bool; infinite if it cannot go on."""
        key = (policy, self._key(policy, alive))
        if key not in self._known:
            self._known[key] = TIMES[policy](self.work, alive)
        return self._known[key]

    def _key(self, policy: str, alive: np.ndarray) -> bytes:
        """All that the time depends on."""
        if policy == "elaswave":
            return np.array([alive[stage :: self.work.stages].sum() for stage in range(self.work.stages)]).tobytes()
        if policy == "torchft":
            return _whole(self.work, alive).sum().tobytes()
        return alive.sum().tobytes()


def _whole(work: Workload, alive: np.ndarray) -> np.ndarray:
    """Which replicas lack nobody, (D,) bool; ranks beyond a full grid are in none."""
    full = alive[: len(alive) // work.stages * work.stages]
    return np.logical_and.reduce(full.reshape(-1, work.stages), axis=1)


def _replicas(work: Workload, replicas: int) -> float:
    if not replicas:
        return math.inf
    return _load(work, work.stages, replicas) + work.filling(work.stages, work.schedule)


def _load(work: Workload, depth: int, workers: int) -> float:
    """What the busiest of so many workers of a stage has to do."""
    return PASSES * _slowest(work.profile.costs, depth) * math.ceil(work.micro_batches / workers)


def _slowest(costs: Sequence[float], depth: int) -> float:
    return max(sum(costs[start:stop]) for start, stop in pairwise(cut(costs, [1.0] * depth)))


def _templates(work: Workload, pipelines: Mapping[int, int]) -> float:
    """When the last pipeline ends, if each micro-batch goes to the one that would end first with it.

    Args:
        pipelines: how many there are of each depth.
    """
    rows = [
        (PASSES * _slowest(work.profile.costs, depth), work.filling(depth, work.schedule), count)
        for depth, count in pipelines.items()
        if count
    ]
    ends = sorted(
        {filling + pace * done for pace, filling, count in rows for done in _around(work.micro_batches, rows)}
    )
    for end in ends:
        if sum(count * max(0, math.floor((end - filling) / pace + 1e-9)) for pace, filling, count in rows) >= (
            work.micro_batches
        ):
            return end
    return math.inf


def _around(micro_batches: int, rows: Sequence[tuple[float, float, int]]) -> range:
    """How many micro-batches one pipeline may have to take."""
    even = micro_batches / sum(count for _, _, count in rows)
    return range(max(1, math.floor(even / 2)), math.ceil(even * 2) + 2)
