"""What the loss of workers would change: the plans before and after, how fast they are, and what has to travel."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from elaswave.config import Config, DvfsBackend
from elaswave.dvfs.simulated import Simulated
from elaswave.models.shape import shape_of
from elaswave.planner.frequency import Clocks, choose
from elaswave.planner.pace import finish
from elaswave.planner.plan import Plan
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import of_plan
from elaswave.snapshot import ring
from elaswave.topology import Member, View
from elaswave.zero.layout import Layout, cut, diff

STATE_BYTES = 12
"""Of optimizer state per element: master weight and two moments, as AdamW has them."""
WEIGHT_BYTES = 4
"""Of a weight that a worker begins to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One plan, and how long a step of it takes.

    Attributes:
        view: whom it is for.
        plan: who does what.
        step: time of a step, in units of the layers' costs; with the clocks, if there are any.
        counts: per member of how many micro-batches it computes a part.
        busy: per member the share of the step in which it computes.
        clocks: of all members; None where clocks are left alone.
    """

    view: View
    plan: Plan
    step: float
    counts: tuple[int, ...]
    busy: tuple[float, ...]
    clocks: Clocks | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Travel:
    """What goes from worker to worker when the plan changes.

    Attributes:
        state_bytes: of master weights and moments.
        weight_bytes: of layers that a worker begins to hold.
        lost: ranks whose state is on no survivor; nothing travels then, the job goes back to a checkpoint.
    """

    state_bytes: int
    weight_bytes: int
    lost: tuple[int, ...]


def profile_of(config: Config) -> Profile:
    """What the planner knows of the model; one that is not built in is built, which needs torch.

    Raises:
        ConfigError: there is no such model.
    """
    shape = shape_of(config.model)
    if shape is not None:
        return Profile(costs=shape.costs, unit_elements=shape.unit_elements, users=shape.users)
    from elaswave.models.build import build_model
    from elaswave.pipeline.layers import Layers

    costs, elements, users = Layers(
        build_model(config.model, config.training.seed), seed=config.training.seed
    ).profile()
    return Profile(costs=costs, unit_elements=elements, users=users)


def view_of(ranks: Iterable[int], per_node: int, epoch: int) -> View:
    """A view of made-up workers with these ranks, so many in a failure domain."""
    members = tuple(
        Member(rank=rank, worker_id=f"{rank:012x}", node_id=f"node {rank // per_node}", host_id="", pid=0)
        for rank in sorted(ranks)
    )
    return View(epoch=epoch, members=members, reason="")


def forecast(config: Config, profile: Profile, view: View, previous: View | None = None) -> Forecast:
    """Plan for a view, and simulate a step of it.

    Raises:
        ConfigError: the model has too few layers for the pipeline.
    """
    plan = make_plan(config, previous, view, profile)
    parallel = config.parallelism
    table = of_plan(plan, plan.tasks, profile.costs, parallel.schedule, parallel.virtual_stages)
    clocks = None
    if config.dvfs.backend is not DvfsBackend.OFF:
        device = Simulated(config.dvfs)
        ends = finish(plan.tasks, table.ops, profile.costs, parallel.schedule)
        clocks = choose(
            table.busy,
            device.range_mhz(0),
            device.profile,
            boost=config.dvfs.boost,
            tolerance=config.dvfs.tolerance,
            step_s=ends,
        )
    step = table.finish if clocks is None else clocks.step_s
    slowdowns = [1.0] * len(table.busy) if clocks is None else map(clocks.request.profile.slowdown, clocks.mhz)
    busy = tuple(busy * slowdown / step for busy, slowdown in zip(table.busy, slowdowns, strict=True))
    return Forecast(
        view=view, plan=plan, step=step, counts=tuple(map(len, plan.micro_batches)), busy=busy, clocks=clocks
    )


def travel(config: Config, profile: Profile, before: Forecast, after: Forecast) -> Travel:
    """What travels so that the survivors hold what the new plan gives them; the new copies of shards not counted."""
    old, new = _layout(config, profile, before.plan), _layout(config, profile, after.plan)
    survivors = set(after.plan.worker_ids)
    holders = _holders(config, before.plan, survivors)
    lost = tuple(
        member.rank
        for member, held_by, shard in zip(before.view.members, holders, old.shards, strict=True)
        if shard and not held_by
    )
    if lost:
        return Travel(state_bytes=0, weight_bytes=0, lost=lost)
    moved = sum(part.stop - part.start for part in diff(old, new, holders, after.plan.worker_ids))
    return Travel(
        state_bytes=moved * STATE_BYTES,
        weight_bytes=_new_elements(profile, before.plan, after.plan) * WEIGHT_BYTES,
        lost=(),
    )


def _layout(config: Config, profile: Profile, plan: Plan) -> Layout:
    buckets = [(bucket.units, bucket.members) for bucket in plan.buckets]
    return cut(profile.unit_elements, len(plan.worker_ids), config.parallelism.zero_layout, buckets=buckets)


def _holders(config: Config, plan: Plan, survivors: Collection[str]) -> list[tuple[str, ...]]:
    """Per shard who is left of its owner and of those that keep a copy."""
    stage_of = {member: stage for stage, members in enumerate(plan.stages) for member in members}
    copies = ring.holders(plan.domains, config.snapshot.copies, [stage_of[i] for i in range(len(plan.worker_ids))])
    return [
        tuple(worker for i in (owner, *others) if (worker := plan.worker_ids[i]) in survivors)
        for owner, others in enumerate(copies)
    ]


def _new_elements(profile: Profile, before: Plan, after: Plan) -> int:
    """Elements of units that members hold after and did not hold before, over all members."""
    held = {worker: frozenset(layers) for worker, layers in zip(before.worker_ids, before.layers, strict=True)}
    known: dict[tuple[frozenset[int], frozenset[int]], int] = {}
    total = 0
    for worker, layers in zip(after.worker_ids, after.layers, strict=True):
        had, has = held.get(worker, frozenset()), frozenset(layers)
        if (had, has) not in known:
            known[had, has] = sum(
                size
                for size, users in zip(profile.unit_elements, profile.users, strict=True)
                if not has.isdisjoint(users) and had.isdisjoint(users)
            )
        total += known[had, has]
    return total
