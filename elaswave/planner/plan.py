"""The frozen value that a recovery carries out: who computes what, who owns which shard, who is linked to whom."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the members of one view do until the next.

    Attributes:
        epoch: of the view it was made for.
        worker_ids: members in order of rank; shard i belongs to the i-th.
        micro_batches: ids of every step per member, in the same order.
        domains: failure domain of each member.
        reason: one line for people.
    """

    epoch: int
    worker_ids: tuple[str, ...]
    micro_batches: tuple[tuple[int, ...], ...]
    domains: tuple[str, ...]
    reason: str

    def index_of(self, worker_id: str) -> int:
        return self.worker_ids.index(worker_id)
