"""From an agreed view to a plan: a pure function, so that the job, the tests and a simulator run the same one."""

from collections.abc import Sequence
from itertools import pairwise

from elaswave.config import Config, Parallelism
from elaswave.errors import ConfigError
from elaswave.planner.dataflow import route
from elaswave.planner.graph import cut, fluid
from elaswave.planner.holders import buckets
from elaswave.planner.plan import Plan, Task, micro_batches
from elaswave.planner.profile import WHOLE, Profile
from elaswave.planner.timetable import timetable
from elaswave.topology import View, absent_from

Cuts = Sequence[Sequence[int]]
"""Per micro-batch the bounds of its chunks of layers."""
Groups = tuple[tuple[int, ...], ...]
"""Per stage its members, or the layers they hold; ascending."""


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """Re-plan the job for the members of `view`.

    A member belongs to the stage of its rank, so that consecutive ranks form whole pipelines and ranks beyond a full
    grid are of use. Only the reason depends on what was before: whoever joins makes the same plan.

    Args:
        config: the run's settings; decides the number of micro-batches and of stages.
        previous: the view that `view` replaces on this worker, None for one that has just joined.
        view: the agreed membership.
        profile: of the model, equal on every worker.

    Raises:
        ConfigError: the model has fewer layers than the pipeline has chunks.
    """
    parallel = config.parallelism
    check_stages(parallel, profile.num_layers)
    home = [member.rank % parallel.stages for member in view.members]
    stages = tuple(tuple(i for i, own in enumerate(home) if own == stage) for stage in range(parallel.stages))
    tasks, held = _divide(parallel, profile.costs, stages, config.micro_batches)
    return Plan(
        epoch=view.epoch,
        worker_ids=view.worker_ids(),
        domains=tuple(member.node_id for member in view.members),
        stages=stages,
        layers=tuple(held[stage] for stage in home),
        buckets=buckets(profile, stages, held),
        tasks=tasks,
        reason=changes(previous, view) + _work(tasks, stages, held),
    )


def check_stages(parallel: Parallelism, num_layers: int) -> None:
    """A chunk has one layer at least.

    Raises:
        ConfigError: there are too many chunks for the layers of the model.
    """
    chunks = parallel.stages * parallel.virtual_stages
    if chunks > num_layers:
        pieces = f" of {parallel.virtual_stages} pieces" if parallel.virtual_stages > 1 else ""
        raise ConfigError(
            "parallelism.stages",
            parallel.stages,
            f"the model has {num_layers} layers; use at most "
            f"{num_layers // parallel.virtual_stages or 1} stages{pieces}",
        )


def _divide(
    parallel: Parallelism, costs: Sequence[float], stages: Groups, num_micro_batches: int
) -> tuple[tuple[Task, ...], Groups]:
    """Who computes what, and which layers each stage holds.

    Cuts that differ per micro-batch are taken only where a step ends earlier with them, and where no stage is left
    without layers, as a stage may be whose share is less than one.
    """
    capacities = [len(members) for members in stages] * parallel.virtual_stages
    cuts: Cuts = [cut(costs, capacities)] * num_micro_batches
    tasks, held = route(cuts, stages, costs), _held(cuts, len(stages))
    if not parallel.fluid:
        return tasks, held
    cuts = fluid(costs, capacities, num_micro_batches)
    other_tasks, other_held = route(cuts, stages, costs), _held(cuts, len(stages))
    filled = all(bool(layers) == bool(members) for layers, members in zip(other_held, stages, strict=True))
    if filled and _finish(parallel, costs, stages, other_tasks) < _finish(parallel, costs, stages, tasks):
        return other_tasks, other_held
    return tasks, held


def _finish(parallel: Parallelism, costs: Sequence[float], stages: Groups, tasks: tuple[Task, ...]) -> float:
    """When a step ends, in units of the costs."""
    num_members = sum(len(members) for members in stages)
    return timetable(tasks, stages, costs, parallel.schedule, num_members, parallel.virtual_stages).finish


def _held(cuts: Cuts, num_stages: int) -> Groups:
    """The layers that each stage computes of any micro-batch."""
    held: list[set[int]] = [set() for _ in range(num_stages)]
    for bounds in set(map(tuple, cuts)):
        for chunk, (start, stop) in enumerate(pairwise(bounds)):
            held[chunk % num_stages].update(range(start, stop))
    return tuple(tuple(sorted(layers)) for layers in held)


def changes(previous: View | None, view: View) -> str:
    """Who came and went."""
    if previous is None:
        return ""
    changes = [f"without rank {member.rank}" for member in absent_from(previous, view)]
    changes += [f"with rank {member.rank}" for member in absent_from(view, previous)]
    return f"{', '.join(changes) or 'same members'}: "


def _work(tasks: tuple[Task, ...], stages: Groups, held: Groups) -> str:
    """What each stage and member has to do, such as `stages of 2+1+2 workers, layers 0-3 | 4-5 | 6-9, ...`."""
    num_members = sum(len(members) for members in stages)
    counts = [len(ids) for ids in micro_batches(tasks, num_members)]
    each = f"{min(counts)} each" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)} each"
    if len(stages) == 1:
        return f"{len(tasks)} micro-batches over {num_members} workers ({each})"
    workers = "+".join(str(len(members)) for members in stages)
    layers = " | ".join(_spans(layers) for layers in held)
    return f"stages of {workers} workers, layers {layers}, {len(tasks)} micro-batches ({each})"


def _spans(layers: Sequence[int]) -> str:
    """Layers as people write them: `0-3, 8`."""
    bounds = (
        [layer for layer in layers if layer - 1 not in layers],
        [layer for layer in layers if layer + 1 not in layers],
    )
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(*bounds, strict=True)) or "none"
