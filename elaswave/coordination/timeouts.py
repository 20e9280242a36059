"""How long the control plane waits for what, in one checked value."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from elaswave.errors import ConfigError

if TYPE_CHECKING:
    from elaswave.config import Elasticity


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Durations in seconds; the first six are the settings of the same names in `[elasticity]`.

    Attributes:
        heartbeat_s: interval of heartbeats; at most half of `suspicion_s`.
        suspicion_s: silence after which a worker or a node is taken for dead (the lease).
        wait_for_workers_s: how long a starting or paused job waits for workers.
        start_timeout_s: from the start of a worker's process until it has joined.
        leave_timeout_s: how long a planned leave may take.
        loss_coalesce_s: losses this close together share one view.
        join_coalesce_s: joins this close together share one view.
        grace_s: how long the first seed waits for a primary that already lives elsewhere to make itself known.
    """

    heartbeat_s: float = 0.2
    suspicion_s: float = 2.0
    wait_for_workers_s: float = 120.0
    start_timeout_s: float = 300.0
    leave_timeout_s: float = 20.0
    loss_coalesce_s: float = 0.002
    join_coalesce_s: float = 0.03
    grace_s: float = 1.0

    def __post_init__(self) -> None:
        if self.heartbeat_s <= 0 or self.heartbeat_s * 2 > self.suspicion_s:
            raise ConfigError(
                "elasticity.heartbeat_s",
                self.heartbeat_s,
                f"must be positive and at most half of elasticity.suspicion_s = {self.suspicion_s}",
            )

    @classmethod
    def from_settings(cls, settings: "Elasticity") -> Self:
        return cls(
            heartbeat_s=settings.heartbeat_s,
            suspicion_s=settings.suspicion_s,
            wait_for_workers_s=settings.wait_for_workers_s,
            start_timeout_s=settings.start_timeout_s,
            leave_timeout_s=settings.leave_timeout_s,
        )

    @property
    def reconnect_s(self) -> float:
        """How long a node whose connection broke may take to come back before its fate counts as unknown."""
        return self.suspicion_s / 4

    @property
    def takeover_s(self) -> float:
        """How long a promoted standby waits for the nodes it knows: each may need a whole lease to notice."""
        return self.suspicion_s * 1.5

    @property
    def claim_s(self) -> float:
        """How often the primary makes itself known at seed addresses that are not in its roster."""
        return self.grace_s / 4
