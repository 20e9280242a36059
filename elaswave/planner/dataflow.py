"""Axis 1, dataflow: share the micro-batches of a step over the live workers of each stage; global batch unchanged.

ElasWave, https://arxiv.org/abs/2510.00606.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from elaswave.planner.plan import Leg, Plan, Task
from elaswave.planner.teams import deal

Ranges = tuple[tuple[int, int], ...]
"""Layers as ascending disjoint (start, stop)."""
Way = tuple[tuple[int, int, int], ...]
"""The way of a micro-batch before workers are chosen: (stage, start, stop) in order of layers."""
Legs = dict[tuple[int, int, int], Leg]
"""Legs that exist already, by their attributes: a large plan has few different ones."""


def route(
    cuts: Sequence[Sequence[int]],
    stages: Sequence[Sequence[int]],
    costs: Sequence[float],
    speeds: Sequence[float] | None = None,
) -> tuple[Task, ...]:
    """Give every leg of every micro-batch to one member of its stage.

    Micro-batches are dealt in order of id to whoever has least to do, lower indices first on ties: one by one in turn
    among equals, so that on a full grid a micro-batch stays within one replica. A micro-batch has the same member in
    all chunks of a stage.

    Args:
        cuts: per micro-batch the C + 1 bounds of its chunks; chunk c is computed by stage c % P.
        stages: members of each of the P stages.
        costs: of each layer.
        speeds: of each member; equal when None.

    Raises:
        ValueError: a chunk with layers belongs to a stage without members.
    """
    whole = ((0, len(costs)),)
    rows = ((micro_batch, way_through(bounds, len(stages)), whole) for micro_batch, bounds in enumerate(cuts))
    return assign(rows, stages, costs, speeds)


def retask(
    plan: Plan,
    missing: Mapping[int, Collection[int]],
    costs: Sequence[float] | None = None,
    speeds: Sequence[float] | None = None,
) -> tuple[Task, ...]:
    """The tasks of what is still wanted of an interrupted step, shared evenly again; what was done does not count.

    Layers stay where the plan has them, only the teams and the members within each stage are chosen anew.

    Args:
        plan: of the view in which it is computed.
        missing: by id of micro-batch the layers whose gradient nobody has; one without layers is left out.
        costs: of each layer, to share by; equal when None.
        speeds: of each member; equal when None.

    Raises:
        ValueError: a micro-batch or a layer is not in the plan.
    """
    num_layers = plan.tasks[0].legs[-1].stop
    costs = costs or [1.0] * num_layers
    total = list(accumulate(costs, initial=0.0))
    ways = _ways(plan)
    wanted: dict[int, Ranges] = {}
    for micro_batch in sorted(missing):
        ranges = _ranges(missing[micro_batch])
        if not ranges:
            continue
        if not 0 <= micro_batch < len(plan.tasks) or ranges[0][0] < 0 or ranges[-1][1] > num_layers:
            raise ValueError(f"micro-batch {micro_batch}, layers {ranges}: not in a plan of {num_layers} layers")
        wanted[micro_batch] = ranges
    works = [sum(passes(0, num_layers, ranges, total)) for ranges in wanted.values()]
    turns = deal(works, [len(mine) for mine in ways])
    rows: list[list[tuple[int, Way, Ranges]]] = [[] for _ in plan.teams]
    for (micro_batch, ranges), turn in zip(wanted.items(), turns, strict=True):
        rows[turn].append((micro_batch, ways[turn][len(rows[turn]) % len(ways[turn])], ranges))
    stages = plan.stages_by_team()
    tasks = [task for team, mine in enumerate(rows) for task in assign(mine, stages[team], costs, speeds)]
    return tuple(sorted(tasks, key=lambda task: task.micro_batch))


def _ways(plan: Plan) -> list[list[Way]]:
    """Per team the ways of its micro-batches, in order of id."""
    stage_of = {member: stage for stage, members in enumerate(plan.stages) for member in members}
    team_of = plan.team_of()
    ways: list[list[Way]] = [[] for _ in plan.teams]
    for task in plan.tasks:
        way = tuple((stage_of[leg.member], leg.start, leg.stop) for leg in task.legs)
        ways[team_of[task.legs[0].member]].append(way)
    return ways


def way_through(bounds: Sequence[int], num_stages: int) -> Way:
    """The way through chunks with these bounds: chunks without layers left out, neighbours of one stage merged."""
    legs: list[tuple[int, int, int]] = []
    for chunk, (start, stop) in enumerate(pairwise(bounds)):
        stage = chunk % num_stages
        if start == stop:
            continue
        if legs and legs[-1][0] == stage:
            legs[-1] = (stage, legs[-1][1], stop)
        else:
            legs.append((stage, start, stop))
    return tuple(legs)


def passes(start: int, stop: int, missing: Ranges, total: Sequence[float]) -> tuple[float, float, float]:
    """What a leg of layers [start, stop) costs: forward, backward for inputs, and for weights; each as much per layer.

    Gradients of inputs are wanted down to the lowest layer whose gradient is missing, those of weights where it is.

    Args:
        missing: ranges of layers, ascending, not empty.
        total: costs of all layers below each bound.
    """
    lowest = max(start, missing[0][0])
    wanted = sum(total[min(b, stop)] - total[max(a, start)] for a, b in missing if a < stop and b > start)
    return total[stop] - total[start], total[stop] - total[lowest] if lowest < stop else 0.0, wanted


def assign(
    rows: Iterable[tuple[int, Way, Ranges]],
    stages: Sequence[Sequence[int]],
    costs: Sequence[float],
    speeds: Sequence[float] | None = None,
    known: Legs | None = None,
) -> tuple[Task, ...]:
    """Deal micro-batches (id, way, missing layers) to the least loaded member of each stage.

    Args:
        rows: in the order in which they are dealt.
        stages: members of each stage.
        costs: of each layer.
        speeds: of each member; equal when None.
        known: legs to use again; those that are made are added.

    Raises:
        ValueError: a leg belongs to a stage without members.
    """
    total = list(accumulate(costs, initial=0.0))
    legs_known: Legs = {} if known is None else known
    speed = {member: speeds[member] if speeds else 1.0 for members in stages for member in members}
    queues = [[(0.0, -speed[member], member) for member in members if speed[member] > 0] for members in stages]
    for queue in queues:
        heapq.heapify(queue)
    alone = all(len(queue) < 2 for queue in queues)
    same: dict[Way, tuple[Leg, ...]] = {}
    works: dict[tuple[Way, Ranges], dict[int, float]] = {}
    tasks = []
    for micro_batch, way, missing in rows:
        legs = same.get(way) if alone else None
        if legs is None:
            work = works.get((way, missing))
            if work is None:
                work = works[way, missing] = _work(way, missing, total)
            chosen: dict[int, int] = {}
            for stage, amount in work.items():
                if not queues[stage]:
                    raise ValueError(
                        f"stage {stage} has layers of micro-batch {micro_batch}, but nobody to compute them"
                    )
                load, order, member = queues[stage][0]
                heapq.heapreplace(queues[stage], (load + amount / speed[member], order, member))
                chosen[stage] = member
            legs = tuple(_leg(chosen[stage], start, stop, legs_known) for stage, start, stop in way)
            same[way] = legs
        tasks.append(Task(micro_batch=micro_batch, legs=legs, missing=missing))
    return tuple(tasks)


def _leg(member: int, start: int, stop: int, known: Legs) -> Leg:
    leg = known.get((member, start, stop))
    if leg is None:
        leg = known[member, start, stop] = Leg(member=member, start=start, stop=stop)
    return leg


def _work(way: Way, missing: Ranges, total: Sequence[float]) -> dict[int, float]:
    """What a micro-batch costs each stage on its way."""
    work: dict[int, float] = {}
    for stage, start, stop in way:
        work[stage] = work.get(stage, 0.0) + sum(passes(start, stop, missing, total))
    return work


def _ranges(layers: Collection[int]) -> Ranges:
    """Ascending disjoint ranges (start, stop) of a set of layers, as few as possible."""
    ranges: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return tuple(ranges)
