"""Who is in the job: members and views, as frozen values that every other part agrees on."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker that holds a rank.

    Attributes:
        rank: slot in the job; stable across replacement of the process.
        worker_id: new for every process (12 hex digits).
        node_id: the agent that looks after the process; also its failure domain.
        host_id: the machine (boot id and network namespace): equal ids can share memory.
        pid: process id on that host.
        address: how other workers reach it, as the communicator announced it.
    """

    rank: int
    worker_id: str
    node_id: str
    host_id: str
    pid: int
    address: Mapping[str, object] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An agreed membership.

    Attributes:
        epoch: increases by at least one with every view.
        members: in order of rank.
        reason: one line for people: who came or went, and why.
        departed: worker ids that left on purpose, over the whole life of the job. A member missing from
            `members` that is not in here was lost.
        paused: fewer members than the job may run with; wait for the next view.
        finished: some member has completed the last step; nobody is replaced any more.
        term: how often the coordinator has changed hands; increases when a standby takes over.
    """

    epoch: int
    members: tuple[Member, ...]
    reason: str
    departed: frozenset[str] = frozenset()
    paused: bool = False
    finished: bool = False
    term: int = 0

    def worker_ids(self) -> tuple[str, ...]:
        return tuple(member.worker_id for member in self.members)

    def ranks(self) -> tuple[int, ...]:
        return tuple(member.rank for member in self.members)

    def rank_of(self, worker_id: str) -> int | None:
        return next((m.rank for m in self.members if m.worker_id == worker_id), None)

    def member(self, worker_id: str) -> Member | None:
        return next((m for m in self.members if m.worker_id == worker_id), None)


def lost_between(old: View, new: View) -> tuple[Member, ...]:
    """Members of `old` that died before `new`: such a view interrupts the step, any other waits for its end."""
    alive = set(new.worker_ids()) | new.departed
    return tuple(member for member in old.members if member.worker_id not in alive)


def absent_from(old: View, new: View) -> tuple[Member, ...]:
    """Members of `old` that are not in `new`, whether they died or left on purpose."""
    alive = set(new.worker_ids())
    return tuple(member for member in old.members if member.worker_id not in alive)
