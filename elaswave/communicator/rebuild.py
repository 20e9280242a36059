"""What communicators do without in-place edits: destroy and build again, wholly or in part. Kept to be measured.

`full` is what a job does whose library cannot drop a rank: everything is destroyed and initialised again, with a new
rendezvous. `partial` builds only the groups that lost a member, and is what a careful job may do with stock
torch.distributed: `new_group(use_local_synchronization=True)` among survivors, or the bare ProcessGroupGloo
constructor, which leaves out torch's bookkeeping. After ElasWave, https://arxiv.org/abs/2510.00606, figure 11.

All of them need a store that outlives the lost rank, and a prefix of it that no earlier attempt has used. None of them
frees an operation that is blocked already: gloo's own timeout has to pass first.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, ProcessGroup, ProcessGroupGloo, Store

Groups = Mapping[str, Sequence[int]]
"""Name -> ranks of the job, in order."""


def build(
    store: Store, prefix: str, rank: int, alive: Sequence[int], groups: Groups, timeout_s: float
) -> dict[str, ProcessGroup]:
    """Initialise torch.distributed among `alive` and make all groups.

    Args:
        store: reachable by all.
        prefix: the same for all, and never used before.
        rank: of this process in the job; ranks of torch are positions in `alive`.
        alive: ranks of the job that take part.
        groups: of all of them; a member that is not alive is left out.
        timeout_s: of every operation.

    Returns:
        this rank's groups of more than one member.
    """
    position = {member: index for index, member in enumerate(alive)}
    dist.init_process_group(
        "gloo",
        store=PrefixStore(prefix, store),
        rank=position[rank],
        world_size=len(alive),
        timeout=timedelta(seconds=timeout_s),
    )
    made: dict[str, ProcessGroup] = {}
    for name, members in groups.items():
        group = dist.new_group([position[member] for member in members if member in position])
        if rank in members and isinstance(group, ProcessGroup) and group.size() > 1:
            made[name] = group
    return made


def full(
    store: Store, prefix: str, rank: int, alive: Sequence[int], groups: Groups, timeout_s: float
) -> dict[str, ProcessGroup]:
    """Destroy everything and build everything again; arguments and result as of `build`."""
    dist.destroy_process_group()
    return build(store, prefix, rank, alive, groups, timeout_s)


def partial(rank: int, survivors: Groups) -> dict[str, ProcessGroup]:
    """Make groups among survivors again, inside the world that still counts the lost rank as a member.

    Args:
        rank: of this process in the job, which is its rank in torch's world.
        survivors: the groups that lost a member, without it.
    """
    made: dict[str, ProcessGroup] = {}
    for name, members in survivors.items():
        if rank in members and len(members) > 1:
            group = dist.new_group(list(members), use_local_synchronization=True)
            assert isinstance(group, ProcessGroup)
            made[name] = group
    return made


def partial_bare(
    store: Store, prefix: str, rank: int, survivors: Groups, timeout_s: float
) -> dict[str, ProcessGroupGloo]:
    """The same with the bare constructor: arguments as of `build` and `partial`."""
    return {
        name: ProcessGroupGloo(
            PrefixStore(f"{prefix}.{name}", store), members.index(rank), len(members), timedelta(seconds=timeout_s)
        )
        for name, members in survivors.items()
        if rank in members and len(members) > 1
    }
