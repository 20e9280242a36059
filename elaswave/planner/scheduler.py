"""From an agreed view to a plan: a pure function, so that the job, the tests and a simulator run the same one."""

from collections import Counter
from collections.abc import Sequence

from elaswave.config import Config, Parallelism
from elaswave.errors import ConfigError
from elaswave.planner.choice import Division, divide
from elaswave.planner.holders import buckets
from elaswave.planner.plan import Plan, Task
from elaswave.planner.profile import WHOLE, Profile
from elaswave.planner.teams import Groups, size
from elaswave.topology import View, absent_from


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """Re-plan the job for the members of `view`.

    A member belongs to the stage of its rank, so that consecutive ranks form whole pipelines and ranks beyond a full
    grid are of use; with fluid cuts some take a lost worker's place where a step ends earlier so. Only the reason
    depends on what was before: whoever joins makes the same plan.

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
    ranks = view.ranks()
    division = divide(parallel, profile.costs, ranks, config.micro_batches)
    stages = tuple(
        tuple(sorted(member for team in division.teams for member in team[stage])) for stage in range(parallel.stages)
    )
    layers: list[tuple[int, ...]] = [()] * len(ranks)
    for team, held in zip(division.teams, division.held, strict=True):
        for members, mine in zip(team, held, strict=True):
            for member in members:
                layers[member] = mine
    return Plan(
        epoch=view.epoch,
        worker_ids=view.worker_ids(),
        domains=tuple(member.node_id for member in view.members),
        stages=stages,
        teams=tuple(tuple(sorted(member for members in team for member in members)) for team in division.teams),
        layers=tuple(layers),
        buckets=buckets(profile, layers),
        tasks=division.tasks,
        reason=changes(previous, view) + _work(division, stages, layers),
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


def changes(previous: View | None, view: View) -> str:
    """Who came and went."""
    if previous is None:
        return ""
    changes = [f"without rank {member.rank}" for member in absent_from(previous, view)]
    changes += [f"with rank {member.rank}" for member in absent_from(view, previous)]
    return f"{', '.join(changes) or 'same members'}: "


def _work(division: Division, stages: Groups, layers: Sequence[tuple[int, ...]]) -> str:
    """What each stage and member has to do, such as `stages of 2+1+2 workers, layers 0-3 | 4-5 | 6-9, ...`."""
    tasks = division.tasks
    counts = _counts(division.tasks, len(layers))
    each = f"{min(counts)} each" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)} each"
    if len(stages) == 1:
        return f"{len(tasks)} micro-batches over {len(layers)} workers ({each})"
    workers = "+".join(str(len(members)) for members in stages)
    spans = [sorted({layers[member] for member in members}) for members in stages]
    cuts = " | ".join(
        "; ".join(map(_spans, each)) or "none" if len(each) < 4 else f"{len(each)} ways" for each in spans
    )
    sizes = sorted((size(team) for team in division.teams), reverse=True)
    teams = f" in teams of {'+'.join(map(str, sizes))}" if len(set(sizes)) > 1 and len(sizes) < 9 else ""
    return f"stages of {workers} workers{teams}, layers {cuts}, {len(tasks)} micro-batches ({each})"


def _counts(tasks: Sequence[Task], num_members: int) -> list[int]:
    """Micro-batches of each member; most of a large plan's tasks share their legs with others."""
    counts = [0] * num_members
    same = {id(task.legs): task.legs for task in tasks}
    for identity, count in Counter(id(task.legs) for task in tasks).items():
        for member in {leg.member for leg in same[identity]}:
            counts[member] += count
    return counts


def _spans(layers: Sequence[int]) -> str:
    """Layers as people write them: `0-3, 8`."""
    bounds = (
        [layer for layer in layers if layer - 1 not in layers],
        [layer for layer in layers if layer + 1 not in layers],
    )
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(*bounds, strict=True)) or "none"
