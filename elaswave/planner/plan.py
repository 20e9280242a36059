"""The frozen value that a recovery carries out: who computes what, who holds which layers, who sums with whom."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One worker's part of a micro-batch's way through the layers.

    Attributes:
        member: index of the worker in the plan.
        start: first layer.
        stop: behind the last layer; more than `start`.
    """

    member: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A micro-batch that is to be computed in an attempt.

    Attributes:
        micro_batch: its id in the step.
        legs: in order of layers, together exactly [0, L); no two in a row are of one member.
        missing: ascending disjoint ranges (start, stop) of the layers whose gradient is wanted; ((0, L),) for all.
    """

    micro_batch: int
    legs: tuple[Leg, ...]
    missing: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Units that the same members hold: one flat buffer, reduced and gathered at once.

    Attributes:
        units: ascending; see `Profile`.
        members: that hold any layer which uses them, ascending.
    """

    units: tuple[int, ...]
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the members of one view do until the next.

    Attributes:
        epoch: of the view it was made for.
        worker_ids: members in order of rank; a member is known by its index in here.
        domains: failure domain of each member.
        stages: members of each pipeline stage, ascending; () where nobody is left.
        teams: members of each team; all legs of a micro-batch are of one. Members without layers are in none.
        layers: per member the layers it holds, ascending: all that its stage in its team computes of any micro-batch.
        buckets: every unit in exactly one.
        tasks: of a whole step, by id of micro-batch.
        reason: one line for people.
    """

    epoch: int
    worker_ids: tuple[str, ...]
    domains: tuple[str, ...]
    stages: tuple[tuple[int, ...], ...]
    teams: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[int, ...], ...]
    buckets: tuple[Bucket, ...]
    tasks: tuple[Task, ...]
    reason: str

    @property
    def micro_batches(self) -> tuple[tuple[int, ...], ...]:
        """Per member the ids of the micro-batches of which it computes any leg, ascending."""
        return micro_batches(self.tasks, len(self.worker_ids))

    def stages_by_team(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Per team its members at each stage."""
        team_of = self.team_of()
        found: list[list[list[int]]] = [[[] for _ in self.stages] for _ in self.teams]
        for stage, members in enumerate(self.stages):
            for member in members:
                found[team_of[member]][stage].append(member)
        return tuple(tuple(map(tuple, stages)) for stages in found)

    def team_of(self) -> dict[int, int]:
        """The team of each member that is in one."""
        return {member: team for team, members in enumerate(self.teams) for member in members}

    def index_of(self, worker_id: str) -> int:
        """Raises ValueError for a worker that is not a member."""
        return self.worker_ids.index(worker_id)


def micro_batches(tasks: tuple[Task, ...], num_members: int) -> tuple[tuple[int, ...], ...]:
    """Per member the ids of the micro-batches of which it computes any leg, in the order of `tasks`."""
    ids: list[list[int]] = [[] for _ in range(num_members)]
    for task in tasks:
        for member in sorted({leg.member for leg in task.legs}):
            ids[member].append(task.micro_batch)
    return tuple(tuple(mine) for mine in ids)
