"""ReCycle's decision: a lost worker's micro-batches go to the workers of the same stage in other replicas.

Source: "ReCycle: Resilient Training of Large DNNs using Pipeline Adaptation", SOSP 2024,
https://arxiv.org/abs/2405.14009. No layer changes its stage. Bubbles hide the additional work, for which the backward
is decoupled into two halves (`1f1b-split` is that schedule here) and every stage takes its optimizer step on its own,
as soon as its gradients are summed (`staggered` in the simulator).

Assumptions in its favour: failures are normalised, which means that workers change their stage until no stage lacks
two more than another, and that this is free; peers share evenly; operations are ordered by the same list scheduling
as ours, which may use a bubble wherever one is, in place of the paper's MILP over a window.
"""

from collections.abc import Sequence

from elaswave.baselines.assemble import assemble, without_virtual_stages
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.graph import cut
from elaswave.planner.plan import Leg, Plan, Task
from elaswave.planner.profile import WHOLE, Profile
from elaswave.topology import View


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """Micro-batches keep their workers where these live. Same arguments as the planner's.

    Raises:
        ConfigError: there are fewer workers than stages, or stages lie in several pieces.
    """
    depth = config.parallelism.stages
    without_virtual_stages(config.parallelism.virtual_stages, "ReCycle")
    if len(view.members) < depth:
        raise ConfigError("parallelism.stages", depth, f"only {len(view.members)} workers are left: use fewer stages")
    replicas = max(view.ranks()) // depth + 1
    grid = _normalised(view.ranks(), depth, replicas)
    tasks = _routed(grid, cut(profile.costs, [1.0] * depth), config.micro_batches)
    counts = "+".join(str(len(row)) for row in grid)
    stages = [list(row.values()) for row in grid]
    everyone = [range(len(view.members))]
    return assemble(previous, view, profile, stages, everyone, tasks, f"stages of {counts} workers, peers share")


def _normalised(ranks: Sequence[int], depth: int, replicas: int) -> list[dict[int, int]]:
    """Per stage its members by replica, after workers have moved from stages with many to stages with few."""
    grid: list[dict[int, int]] = [{} for _ in range(depth)]
    for index, rank in enumerate(ranks):
        grid[rank % depth][rank // depth] = index
    while True:
        most = max(range(depth), key=lambda stage: len(grid[stage]))
        least = min(range(depth), key=lambda stage: len(grid[stage]))
        if len(grid[most]) - len(grid[least]) < 2:
            return grid
        free = next(replica for replica in range(replicas) if replica not in grid[least])
        giver = free if free in grid[most] else max(grid[most])
        grid[least][free] = grid[most].pop(giver)


def _routed(grid: Sequence[dict[int, int]], bounds: Sequence[int], num_micro_batches: int) -> tuple[Task, ...]:
    """Micro-batch i goes through replica i mod D, and around its holes through whichever peer has least to do."""
    replicas = 1 + max(replica for row in grid for replica in row)
    loads = [dict.fromkeys(row.values(), 0) for row in grid]
    for i in range(num_micro_batches):
        for row, load in zip(grid, loads, strict=True):
            if i % replicas in row:
                load[row[i % replicas]] += 1
    whole, tasks = ((0, bounds[-1]),), []
    for i in range(num_micro_batches):
        legs = []
        for stage, (row, load) in enumerate(zip(grid, loads, strict=True)):
            member = row.get(i % replicas)
            if member is None:
                member = min(load, key=lambda other: (load[other], other))
                load[member] += 1
            legs.append(Leg(member=member, start=bounds[stage], stop=bounds[stage + 1]))
        tasks.append(Task(micro_batch=i, legs=tuple(legs), missing=whole))
    return tuple(tasks)
