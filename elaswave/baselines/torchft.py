"""torchft's decision: a replica that has lost any worker is dropped, whole.

Source: https://github.com/meta-pytorch/torchft, where the replica group is the unit of failure (there is no paper).

Assumptions in its favour: the global batch is kept, as its users would have to arrange (its own quorum would sum fewer
samples); the micro-batches of the dropped replicas are shared evenly over the others; no step is lost with the vote.
"""

from elaswave.baselines.assemble import in_turns, without_virtual_stages
from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.planner.plan import Plan
from elaswave.planner.profile import WHOLE, Profile
from elaswave.topology import View


def make_plan(config: Config, previous: View | None, view: View, profile: Profile = WHOLE) -> Plan:
    """Whole replicas go on as they are; the survivors of others idle. Same arguments as the planner's.

    Raises:
        ConfigError: no replica is whole, or stages lie in several pieces.
    """
    depth = config.parallelism.stages
    without_virtual_stages(config.parallelism.virtual_stages, "torchft")
    replicas: dict[int, list[int]] = {}
    for index, member in enumerate(view.members):
        replicas.setdefault(member.rank // depth, []).append(index)
    whole = [tuple(members) for members in replicas.values() if len(members) == depth]
    if not whole:
        raise ConfigError("parallelism.stages", depth, "no replica has all its stages: the job needs new workers")
    return in_turns(config, previous, view, profile, whole, f"{len(whole)} whole replicas of {len(replicas)}")
