"""A restart from the last checkpoint: whoever is left forms as many whole replicas as there can be.

Source: what `torchrun --max-restarts` with a checkpoint does, or a scheduler that starts the job anew.

Assumption in its favour: ranks are given out anew, so that only fewer workers than a whole replica are left over.
"""

from elaswave.baselines.assemble import in_turns, without_virtual_stages
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.plan import Plan
from elaswave.planner.profile import WHOLE, Profile
from elaswave.topology import View


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """The first workers form whole replicas, the rest idles. Same arguments as the planner's.

    Raises:
        ConfigError: there are fewer workers than stages, or stages lie in several pieces.
    """
    depth = config.parallelism.stages
    without_virtual_stages(config.parallelism.virtual_stages, "a restart")
    replicas = len(view.members) // depth
    if not replicas:
        raise ConfigError("parallelism.stages", depth, f"only {len(view.members)} workers are left: use fewer stages")
    members = [tuple(range(first, first + depth)) for first in range(0, replicas * depth, depth)]
    return in_turns(config, previous, view, profile, members, f"restarted with {replicas} replicas")
