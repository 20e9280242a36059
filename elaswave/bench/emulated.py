"""Plans on the real pipeline under a virtual clock: real processes, layers and messages, but the time that is modelled.

Each message carries its sender's time. A worker's time is that of its last message or of its own last operation,
whichever is later, and grows by what the operation costs in the planner's model. So what more workers than cores do to
wall time does not matter, and the figures must be the simulator's, unless it or the pipeline does something else.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from elaswave.baselines.policies import POLICIES, Policy
from elaswave.bench.forked import Rank, run_ranks
from elaswave.bench.paced import Blocks, Vectors
from elaswave.communicator.group import Group, GroupSpec
from elaswave.communicator.mesh import Mesh
from elaswave.communicator.transfers import Handle
from elaswave.config import Config, Schedule, Transport
from elaswave.errors import ConfigError
from elaswave.events import Stage as Part
from elaswave.pipeline.executor import Executor
from elaswave.pipeline.schedule import Operation
from elaswave.pipeline.stage import Stage
from elaswave.planner.plan import Plan
from elaswave.planner.profile import Profile
from elaswave.runtime.build import build_stage, profile_of
from elaswave.runtime.work import Work
from elaswave.simulator.comparison import Grid
from elaswave.simulator.pipeline import Machine, after_sharing, steps

WIDTH, SEQUENCE = 16, 4
"""Of the smallest layers that are whole: what is computed does not matter here, who computes it does."""
STAMP_BYTES = 8
TIMEOUT_S = 300.0
REPEATS = 3
"""Steps in a row, so that those which overlap do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """One policy's step.

    Attributes:
        emulated, simulated: its time, in units of the layers' costs.
        losses: per micro-batch, of the first step.
    """

    emulated: float
    simulated: float
    losses: Mapping[int, float]


def emulate(
    grid: Grid,
    lost: Sequence[int],
    schedule: Schedule,
    machine: Machine,
    policies: Mapping[str, Policy] = POLICIES,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Emulated]:
    """Run the plans of all policies that can go on, with a process for every survivor.

    Args:
        grid: before the loss; layers of equal cost.
        lost: ranks.
        schedule: of the job, for policies that have none of their own.
        machine: what messages and updates take.
        policies: by name.
        timeout_s: for all of it.

    Raises:
        BenchError: a process failed.
    """
    view = grid.view(lost, epoch=2)
    jobs: dict[str, tuple[Policy, Config, Plan]] = {}
    profile = replace(profile_of(_stage(grid, grid.config(schedule))), costs=(1.0,) * grid.layers)
    for name, policy in policies.items():
        config = policy.config(grid.config(schedule))
        try:
            jobs[name] = (policy, config, policy.make_plan(config, None, view, profile))
        except ConfigError:
            continue
    ranks = run_ranks(len(view.members), lambda me: _work(me, grid, profile, machine, jobs), timeout_s)
    return {
        name: Emulated(
            emulated=ranks[0][name]["period"],
            simulated=steps(plan, profile, config.parallelism, machine, staggered=policy.staggered).period,
            losses={int(number): loss for rank in ranks for number, loss in rank[name]["losses"].items()},
        )
        for name, (policy, config, plan) in jobs.items()
    }


class VirtualGroup:
    """A group whose messages carry their sender's time.

    Args:
        group: that sends them.
        message: what each takes.
        costs: of each layer.
    """

    def __init__(self, group: Group, message: float, costs: Sequence[float]) -> None:
        self.now = 0.0
        self._group, self._message = group, message
        self._total = list(accumulate(costs, initial=0.0))
        self._stops: dict[tuple[int, int], int] = {}

    def begin(self, operations: Sequence[Operation]) -> None:
        """What is going to be computed."""
        self._stops = {(op.micro_batch, op.start): op.stop for op in operations}

    @contextmanager
    def span(self, stage: Part, *, micro_batch: int, layer: int, **rest: int) -> Iterator[None]:
        """Computes, which takes its time."""
        yield
        self.now += self._total[self._stops[micro_batch, layer]] - self._total[layer]

    def isend(self, tensor: torch.Tensor, dst: int, tag: int = 0) -> Handle:
        """As `Group.isend`."""
        stamp = torch.tensor([self.now], dtype=torch.float64).view(torch.uint8)
        return self._group.isend(torch.cat([tensor.reshape(-1).view(torch.uint8), stamp]), dst, tag)

    def irecv(self, tensor: torch.Tensor, src: int, tag: int = 0) -> Handle:
        """As `Group.irecv`."""
        room = torch.empty(tensor.nbytes + STAMP_BYTES, dtype=torch.uint8)
        return _Stamped(tensor, room, self._group.irecv(room, src, tag))

    def wait(self, handles: Handle | Sequence[Handle]) -> None:
        """As `Group.wait`; a message that was received moves the time."""
        for handle in [handles] if isinstance(handles, Handle) else handles:
            if isinstance(handle, _Stamped):
                self._group.wait(handle.inner)
                sent = handle.room[-STAMP_BYTES:].clone().view(torch.float64).item()
                handle.tensor.reshape(-1).view(torch.uint8).copy_(handle.room[:-STAMP_BYTES])
                self.now = max(self.now, sent + self._message)
            else:
                self._group.wait(handle)


class _Stamped(Handle):
    """A message that is to be received; taken for done, so that nothing is moved into the time of waiting for it."""

    __slots__ = ("inner", "room", "tensor")

    def __init__(self, tensor: torch.Tensor, room: torch.Tensor, inner: Handle) -> None:
        super().__init__(inner.peer)
        self.tensor, self.room, self.inner, self.done = tensor, room, inner, True


def _work(
    me: Rank, grid: Grid, profile: Profile, machine: Machine, jobs: Mapping[str, tuple[Policy, Config, Plan]]
) -> dict[str, Any]:
    """What one process does: its part of every policy's steps, one policy after another."""
    torch.set_num_threads(1)
    ids = tuple(f"{rank:012x}" for rank in range(me.size))
    mesh = Mesh(worker_id=ids[me.rank], host_id="bench", secret=bytes(32), transport=Transport.SHM, timeout_s=TIMEOUT_S)
    mesh.edit(1, dict(zip(ids, me.exchange(mesh.address), strict=True)), {"world": GroupSpec(ids)})
    found = {name: _steps(me, mesh.group("world"), grid, profile, machine, *job) for name, job in jobs.items()}
    me.meet()  # others may still read from this one
    mesh.close()
    return found


def _steps(
    me: Rank,
    real: Group,
    grid: Grid,
    profile: Profile,
    machine: Machine,
    policy: Policy,
    config: Config,
    plan: Plan,
) -> dict[str, Any]:
    """Steps of one plan: the time of the last one, and the losses of the first that this member has found."""
    group = VirtualGroup(real, machine.message, profile.costs)
    stage = _stage(grid, config)
    _hold(stage, plan, me.rank)
    operations = Work(plan, plan.tasks).operations(me.rank, config.parallelism, profile.costs)
    group.begin(operations)
    losses: dict[int, float] = {}
    last, period = 0.0, 0.0
    for step in range(1, REPEATS + 1 if policy.staggered else 2):
        Executor(stage, group, step, group.span, lambda: None).run(operations)  # type: ignore[arg-type]
        losses = losses or dict(stage.gradients.losses)
        ends = me.exchange(group.now)
        period, last = max(ends) + machine.update - last, max(ends) + machine.update
        begins = after_sharing(plan, ends) if policy.staggered else [max(ends)] * me.size
        group.now = begins[me.rank] + machine.update
    return {"period": period, "losses": losses}


def _stage(grid: Grid, config: Config) -> Stage:
    return build_stage(config, Blocks(grid.layers, WIDTH, 0.0), Vectors(SEQUENCE, WIDTH))


def _hold(stage: Stage, plan: Plan, member: int) -> None:
    """Hold what the plan says, with initial weights."""
    stage.hold(plan.layers[member], [bucket.units for bucket in plan.buckets if member in bucket.members], 0)
    for unit in stage.weights.buckets.units:
        stage.weights.put(unit, stage.layers.initial(unit), 0)
    stage.select(0)
