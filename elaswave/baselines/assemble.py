"""What all baselines do in the same way: a plan out of decisions, and the reason for people."""

from collections.abc import Sequence

from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.graph import cut
from elaswave.planner.holders import buckets
from elaswave.planner.plan import Leg, Plan, Task
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import changes
from elaswave.topology import View

Pipeline = tuple[tuple[int, ...], tuple[int, ...]]
"""Members in order of layers, and their bounds: member i computes layers [bounds[i], bounds[i + 1])."""


def assemble(
    previous: View | None,
    view: View,
    profile: Profile,
    stages: Sequence[Sequence[int]],
    teams: Sequence[Sequence[int]],
    tasks: Sequence[Task],
    reason: str,
) -> Plan:
    """A plan in which every member holds the layers that it computes; one without a leg belongs to no stage."""
    held: list[set[int]] = [set() for _ in view.members]
    for member, start, stop in {(leg.member, leg.start, leg.stop) for task in tasks for leg in task.legs}:
        held[member].update(range(start, stop))
    layers = tuple(tuple(sorted(mine)) for mine in held)
    idle = sum(not mine for mine in layers)
    return Plan(
        epoch=view.epoch,
        worker_ids=view.worker_ids(),
        domains=tuple(member.node_id for member in view.members),
        stages=tuple(tuple(sorted(member for member in members if layers[member])) for members in stages),
        teams=tuple(team for members in teams if (team := tuple(sorted(m for m in members if layers[m])))),
        layers=layers,
        buckets=buckets(profile, layers),
        tasks=tuple(tasks),
        reason=f"{changes(previous, view)}{reason}, {idle} idle" if idle else f"{changes(previous, view)}{reason}",
    )


def through(pipelines: Sequence[Pipeline], of_micro_batch: Sequence[int], num_layers: int) -> tuple[Task, ...]:
    """The tasks of a step in which each micro-batch goes through one pipeline.

    Args:
        pipelines: that exist.
        of_micro_batch: for each micro-batch the number of its pipeline.
        num_layers: L.
    """
    legs = [
        tuple(
            Leg(member=member, start=start, stop=stop)
            for member, start, stop in zip(members, bounds[:-1], bounds[1:], strict=True)
        )
        for members, bounds in pipelines
    ]
    whole = ((0, num_layers),)
    return tuple(Task(micro_batch=i, legs=legs[pipeline], missing=whole) for i, pipeline in enumerate(of_micro_batch))


def in_turns(
    config: Config,
    previous: View | None,
    view: View,
    profile: Profile,
    replicas: Sequence[tuple[int, ...]],
    reason: str,
) -> Plan:
    """A plan in which whole replicas, all cut alike, take the micro-batches in turns; everyone else idles.

    Args:
        replicas: members of each in order of stages; at least one.
    """
    bounds = cut(profile.costs, [1.0] * config.parallelism.stages)
    turns = [i % len(replicas) for i in range(config.micro_batches)]
    tasks = through([(members, bounds) for members in replicas], turns, profile.num_layers)
    return assemble(previous, view, profile, list(zip(*replicas, strict=True)), replicas, tasks, reason)


def without_virtual_stages(virtual_stages: int, system: str) -> None:
    """Refuse what these systems do not have.

    Raises:
        ConfigError: stages lie in several pieces.
    """
    if virtual_stages > 1:
        raise ConfigError("parallelism.virtual_stages", virtual_stages, f"{system} plans whole stages: use 1")
