"""Oobleck's decision: pipelines of different depths, from templates that were made before, cover all workers.

Source: "Oobleck: Resilient Distributed Training of Large Models Using Pipeline Templates", SOSP 2023,
https://arxiv.org/abs/2309.08125. A template for q workers cuts the layers into q stages of least time. Pipelines have
their own share of the batch, in proportion to their speed. A pipeline that has lost a worker is instantiated anew from
a smaller template, or borrows workers, or else is merged; what a worker must fetch for that is
`elaswave.simulator.pipeline.moved`.

Memory is charged: a worker fits `ROOM` times what it has in the healthy grid, so a template has at least P / ROOM
workers. Assumption in its favour: whether to borrow is decided by the end of a step.
"""

import heapq
import math
from collections.abc import Container, Sequence
from itertools import pairwise

from elaswave.baselines.assemble import assemble, through, without_virtual_stages
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.graph import cut
from elaswave.planner.plan import Plan
from elaswave.planner.profile import WHOLE, Profile
from elaswave.topology import View

ROOM = 1.25
"""Memory of a worker, in units of what the largest stage of the healthy grid needs."""


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """Instantiate the templates that end a step first. Same arguments as the planner's.

    Raises:
        ConfigError: the model does not fit the workers that are left, or stages lie in several pieces.
    """
    depth = config.parallelism.stages
    without_virtual_stages(config.parallelism.virtual_stages, "Oobleck")
    templates = _templates(profile, depth, len(view.members))
    replicas: dict[int, list[int]] = {}
    for index, member in enumerate(view.members):
        replicas.setdefault(member.rank // depth, []).append(index)
    choices = _instantiations([len(members) for members in replicas.values()], len(view.members), templates)
    if not choices:
        raise ConfigError("parallelism.stages", depth, f"the model does not fit {len(view.members)} workers")
    shares = [_shares(profile.costs, [templates[size] for size in sizes], config.micro_batches) for sizes in choices]
    best = min(range(len(choices)), key=lambda i: shares[i][0])
    pipelines, first = [], 0
    for size in choices[best]:
        pipelines.append((tuple(range(first, first + size)), templates[size]))
        first += size
    stages = [
        [members[stage - max(choices[best])] for members, _ in pipelines if stage >= max(choices[best]) - len(members)]
        for stage in range(max(choices[best]))
    ]
    tasks = through(pipelines, shares[best][1], profile.num_layers)
    return assemble(
        previous,
        view,
        profile,
        stages,
        [members for members, _ in pipelines],
        tasks,
        f"pipelines of {'+'.join(map(str, choices[best]))} workers",
    )


def _templates(profile: Profile, depth: int, workers: int) -> dict[int, tuple[int, ...]]:
    """By number of workers the bounds of a pipeline that fits them."""
    sizes = [float(size) for size in profile.unit_elements[: profile.num_layers]]
    healthy = cut(profile.costs, [1.0] * depth)
    limit = ROOM * max(sum(sizes[start:stop]) for start, stop in pairwise(healthy))
    found = {}
    for size in range(math.ceil(depth / ROOM), min(workers, profile.num_layers) + 1):
        try:
            found[size] = cut(profile.costs, [1.0] * size, memory=sizes, limits=[limit] * size)
        except ConfigError:
            continue
    return found


def _instantiations(left: list[int], workers: int, templates: Container[int]) -> list[list[int]]:
    """Sizes of pipelines that fit: as they are left, or with workers borrowed; merged ones if neither fits."""
    for pipelines in range(len(left), 0, -1):
        sizes = [left, _even(workers, pipelines)] if pipelines == len(left) else [_even(workers, pipelines)]
        fitting = [each for each in sizes if all(size in templates for size in each)]
        if fitting:
            return fitting
    return []


def _even(workers: int, pipelines: int) -> list[int]:
    return [workers // pipelines + (i < workers % pipelines) for i in range(pipelines)]


def _shares(
    costs: Sequence[float], templates: Sequence[tuple[int, ...]], num_micro_batches: int
) -> tuple[float, list[int]]:
    """When the last pipeline ends, in turns of its slowest stage, and the pipeline of each micro-batch.

    Every micro-batch goes to the pipeline that would end first with it, counting the time to fill it.
    """
    slowest = [max(sum(costs[start:stop]) for start, stop in pairwise(bounds)) for bounds in templates]
    queue = [
        (slow * (len(bounds) - 1) + slow, i) for i, (slow, bounds) in enumerate(zip(slowest, templates, strict=True))
    ]
    heapq.heapify(queue)
    chosen, end = [], 0.0
    for _ in range(num_micro_batches):
        finish, pipeline = queue[0]
        chosen.append(pipeline)
        end = max(end, finish)
        heapq.heapreplace(queue, (finish + slowest[pipeline], pipeline))
    return end, chosen
