"""The systems that are compared, by name: what each decides, and what its schedule needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elaswave.baselines import oobleck, recycle, restart, torchft
from elaswave.config import Config, Schedule
from elaswave.planner.plan import Plan
from elaswave.planner.profile import Profile
from elaswave.planner.scheduler import make_plan
from elaswave.topology import View

Planner = Callable[[Config, View | None, View, Profile], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A way to go on after a change of workers.

    Attributes:
        make_plan: the decision; the signature of `elaswave.planner.scheduler.make_plan`.
        schedule: that its authors use; None for whichever the job has.
        staggered: each stage takes its optimizer step, and begins the next step, without waiting for the others.
    """

    make_plan: Planner
    schedule: Schedule | None = None
    staggered: bool = False

    def config(self, config: Config) -> Config:
        """The settings of a job under this policy."""
        if self.schedule is None:
            return config
        parallel = config.parallelism.model_copy(update={"schedule": self.schedule})
        return config.model_copy(update={"parallelism": parallel})


BASELINES: Mapping[str, Policy] = {
    "torchft": Policy(make_plan=torchft.make_plan),
    "recycle": Policy(make_plan=recycle.make_plan, schedule=Schedule.SPLIT, staggered=True),
    "oobleck": Policy(make_plan=oobleck.make_plan),
    "restart": Policy(make_plan=restart.make_plan),
}
"""Other systems."""

POLICIES: Mapping[str, Policy] = {"elaswave": Policy(make_plan=make_plan), **BASELINES}
"""All that are compared."""
