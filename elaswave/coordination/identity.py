"""Who a node is, and how it introduces itself."""

from dataclasses import dataclass

from elaswave.coordination.protocol import VERSION, NodeHello, Report, Roster
from elaswave.topology import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A node. `host` is empty when others know best under which address they reach it."""

    node_id: str
    host_id: str
    pid: int
    started_ticks: int
    host: str
    port: int

    def hello(self, report: Report, roster: Roster | None, view: View | None) -> NodeHello:
        """The introduction, with all that a new primary needs to know."""
        return NodeHello(
            version=VERSION,
            node_id=self.node_id,
            host_id=self.host_id,
            pid=self.pid,
            started_ticks=self.started_ticks,
            host=self.host,
            port=self.port,
            report=report,
            roster=roster,
            view=view,
        )
