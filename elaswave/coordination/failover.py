"""Where the primary is, and when to become it: a node's search along the seeds and the roster. Does no I/O."""

from dataclasses import dataclass, field

from elaswave.coordination.protocol import Address, NodeEntry, Roster
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import AuthenticationError, ElasWaveError, Fenced, LaunchError, ProtocolError, RefusedError

RETRY_MIN_S = 0.02
RETRY_MAX_S = 0.25
SEED_PATIENCE = 3
"""A later seed waits this many graces longer than the one before it."""
SILENT_MAX = 5
"""Whoever accepts connections and says nothing this often is no node of ours, or hangs."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to this address and introduce the node there."""

    address: Address


@dataclass(frozen=True, slots=True)
class Promote:
    """Become the primary."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There is no primary to follow and none to become."""

    error: ElasWaveError


Action = Dial | Promote | GiveUp


@dataclass(slots=True)
class Failover:
    """The search for the primary.

    At most one address is dialled at a time. A round dials whoever may be the primary: the one that was lost, then
    all that come before this node in the roster; without a roster, all other seeds. A node becomes primary at the end
    of a round in which nobody before it answered.

    Args:
        own: address of this node's listener.
        seed_index: position of `own` among the seeds; None when it is none of them.
    """

    now: float
    node_id: str
    own: Address
    seeds: tuple[Address, ...]
    seed_index: int | None
    timeouts: Timeouts
    roster: Roster | None = None
    searching: bool = True
    settled_once: bool = False
    _since: float = 0.0
    _queue: list[Address] = field(default_factory=list)
    _tried: set[Address] = field(default_factory=set)
    _dialling: Address | None = None
    _answered: bool = False
    _in_round: bool = False
    _retry_at: float = 0.0
    _retry_s: float = RETRY_MIN_S
    _gone: set[str] = field(default_factory=set)
    _hint: Address | None = None
    _problems: dict[Address, str] = field(default_factory=dict)
    _silent: dict[Address, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since = self.now

    # -- what happens ------------------------------------------------------------------------------------------

    def settled(self) -> None:
        """This node follows a primary, or is it."""
        self.searching, self.settled_once = False, True
        self._queue, self._dialling, self._in_round, self._hint = [], None, False, None
        self._problems = {}

    def lost(self, now: float) -> None:
        """The connection to the primary broke."""
        if not self.searching:
            self.searching, self._since, self._retry_at, self._retry_s = True, now, now, RETRY_MIN_S
            self._in_round = False

    def node_gone(self, node_id: str) -> None:
        """This node's process is known to be dead: nobody answers there."""
        self._gone.add(node_id)

    def claimed(self, now: float, address: Address) -> None:
        """Somebody says that the primary is at `address`."""
        self._hint, self._retry_at = address, now

    def redirected(self, now: float, address: Address, hint: Address | None) -> None:
        """`address` is alive and not the primary."""
        if address == self._dialling:
            self._dialling = None
            self._answered = self._answered or address in self._before()
            self._problems.pop(address, None)
            if hint is not None and hint != self.own and hint not in self._tried:
                self._queue.insert(0, hint)

    def failed(self, now: float, address: Address, error: ElasWaveError | OSError) -> GiveUp | None:
        """`address` did not answer as a node of this job does.

        Before this node has ever been part of the job, a stranger at a seed's address is an error for people.
        """
        if address != self._dialling:
            return None
        self._dialling = None
        self._problems[address] = str(error)
        if isinstance(error, TimeoutError) and not self.settled_once:
            self._silent[address] = self._silent.get(address, 0) + 1
            if self._silent[address] >= SILENT_MAX:
                return GiveUp(explain(address, error))
        stranger = isinstance(error, ProtocolError | RefusedError)
        if stranger and (isinstance(error, RefusedError) or not self.settled_once):
            return GiveUp(explain(address, error))
        return None

    def tick(self, now: float) -> Action | None:
        """The next thing to do, if any."""
        if not self.searching or self._dialling is not None:
            return None
        if not self._in_round:
            if now < self._retry_at:
                return None
            self._start_round()
        while self._queue:
            address = self._queue.pop(0)
            if address not in self._tried and address != self.own:
                self._tried.add(address)
                self._dialling = address
                return Dial(address)
        return self._end_round(now)

    # -- rounds ------------------------------------------------------------------------------------------------

    def _start_round(self) -> None:
        self._in_round, self._answered, self._tried = True, False, set()
        self._queue = list(self._targets())
        if self._hint is not None:
            self._queue.insert(0, self._hint)
            self._hint = None

    def _entries(self) -> tuple[NodeEntry, ...]:
        nodes = self.roster.nodes if self.roster is not None else ()
        return nodes if any(entry.node_id == self.node_id for entry in nodes) else ()

    def _targets(self) -> list[Address]:
        entries = self._entries()
        if not entries:
            return list(self.seeds)
        last = [e.address for e in entries if self._was_primary(e) and e.node_id not in self._gone]
        return last + self._before()

    def _was_primary(self, entry: NodeEntry) -> bool:
        return self.roster is not None and entry.node_id == self.roster.primary != self.node_id

    def _before(self) -> list[Address]:
        """Who becomes primary rather than this node, if alive. The lost one does not: a new process may be there."""
        entries = self._entries()
        if not entries:
            return list(self.seeds[: self.seed_index])
        own = next(i for i, entry in enumerate(entries) if entry.node_id == self.node_id)
        return [e.address for e in entries[:own] if e.node_id not in self._gone and not self._was_primary(e)]

    def _end_round(self, now: float) -> Action | None:
        self._in_round = False
        waited_s = now - self._since
        if self._may_promote(waited_s):
            return Promote()
        limit_s = self._patience_s()
        if waited_s >= limit_s:
            text = self._explain_nobody(limit_s)
            return GiveUp(Fenced(f"cut off from the job: {text}") if self._entries() else LaunchError(text))
        self._retry_at = now + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)
        return None

    def _may_promote(self, waited_s: float) -> bool:
        if self._answered:
            return False
        if self._entries():
            return True
        if self.seed_index is None:
            return False
        alone = len(self.seeds) == 1 and self.seeds[0][1] == 0
        grace_s = self.timeouts.grace_s * (1 + SEED_PATIENCE * self.seed_index)
        return alone or waited_s >= grace_s

    def _patience_s(self) -> float:
        """A node that was part of the job knows soon that it is cut off; a new one may be early."""
        return 3 * self.timeouts.takeover_s if self._entries() else self.timeouts.wait_for_workers_s

    def _explain_nobody(self, limit_s: float) -> str:
        seen = "; ".join(f"{host}:{port}: {text}" for (host, port), text in sorted(self._problems.items()))
        where = ", ".join(f"{host}:{port}" for host, port in self.seeds)
        return (
            f"no primary answered within {limit_s:g} s (seeds: {where}{'; ' + seen if seen else ''}); start a node on "
            "a host that --rdzv-endpoint names, and open its port"
        )


def explain(address: Address, error: Exception) -> ElasWaveError:
    """The same kind of error, with where it happened and the remedy."""
    where = f"{address[0]}:{address[1]}"
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, AuthenticationError):
        return AuthenticationError(
            f"{where} does not know this job's secret: it belongs to another job, or its host has another secret. Give "
            "all nodes the same --rdzv-id and the same ELASWAVE_SECRET or ELASWAVE_SECRET_FILE"
        )
    return LaunchError(
        f"{where} is in use by something that does not speak the ElasWave protocol ({error}); stop it, or name "
        "another port in --rdzv-endpoint"
    )
