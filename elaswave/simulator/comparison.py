"""Policies side by side on grids that have lost ranks: throughput against what the survivors could do at best."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from elaswave.baselines.policies import POLICIES, Policy
from elaswave.config import Config, Schedule, from_mapping
from elaswave.errors import ConfigError
from elaswave.planner.profile import Profile
from elaswave.simulator.pipeline import IDEAL, Machine, throughput
from elaswave.topology import Member, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A full grid of equal ranks, and what it trains.

    Attributes:
        replicas: D.
        stages: P.
        layers: L, of equal cost.
        micro_batches: of a step, over the whole job.
    """

    replicas: int
    stages: int
    layers: int
    micro_batches: int

    @property
    def ranks(self) -> int:
        """N = D P."""
        return self.replicas * self.stages

    def config(self, schedule: Schedule, *, fluid: bool = True) -> Config:
        """Settings of a job on this grid; micro-batches of one sample."""
        return from_mapping(
            {
                "training": {"train_batch_size": self.micro_batches, "micro_batch_size": 1},
                "parallelism": {"stages": self.stages, "schedule": schedule, "fluid": fluid},
            }
        )

    def profile(self) -> Profile:
        """Equal layers."""
        return Profile(
            costs=(1.0,) * self.layers,
            unit_elements=(1,) * self.layers,
            users=tuple((layer,) for layer in range(self.layers)),
        )

    def view(self, lost: Iterable[int] = (), epoch: int = 1) -> View:
        """All ranks but those that are lost, each a failure domain of its own."""
        gone = set(lost)
        members = [
            Member(rank=rank, worker_id=f"w{rank}", node_id=f"n{rank}", host_id=f"n{rank}", pid=1)
            for rank in range(self.ranks)
            if rank not in gone
        ]
        return View(epoch=epoch, members=tuple(members), reason="")


PAPER = Grid(replicas=2, stages=6, layers=36, micro_batches=32)
"""96 devices as 12 nodes of 8, which are lost as a whole: a rank of this grid is a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A policy after a loss.

    Attributes:
        throughput: samples per unit of cost; 0 where it cannot go on.
        of_healthy: as a share of the full grid under the same schedule.
        of_bound: as a share of (N - k) / N of that.
    """

    throughput: float
    of_healthy: float
    of_bound: float


def compare(
    grid: Grid,
    lost: Iterable[int],
    schedule: Schedule,
    machine: Machine = IDEAL,
    policies: Mapping[str, Policy] = POLICIES,
) -> dict[str, Outcome]:
    """What each policy does with what is left of a grid.

    Args:
        grid: before the loss.
        lost: ranks.
        schedule: of the job; policies that need another one have that, and are compared with its healthy throughput.
        machine: what takes time besides computing.
        policies: by name.
    """
    gone = set(lost)
    healthy: dict[tuple[Schedule, bool], float] = {}
    found = {}
    for name, policy in policies.items():
        config, profile = policy.config(grid.config(schedule)), grid.profile()
        key = (config.parallelism.schedule, policy.staggered)
        if key not in healthy:
            plan = POLICIES["elaswave"].make_plan(config, None, grid.view(), profile)
            healthy[key] = throughput(plan, config, profile, machine, staggered=policy.staggered)
        try:
            plan = policy.make_plan(config, grid.view(), grid.view(gone, epoch=2), profile)
        except ConfigError:
            found[name] = Outcome(throughput=0.0, of_healthy=0.0, of_bound=0.0)
            continue
        rate = throughput(plan, config, profile, machine, staggered=policy.staggered)
        share = rate / healthy[key]
        bound = (grid.ranks - len(gone)) / grid.ranks
        found[name] = Outcome(throughput=rate, of_healthy=share, of_bound=share / bound)
    return found
