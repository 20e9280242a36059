"""torchrun's local agent, changed in three places: a dead worker is replaced alone, SIGTERM is a planned leave, and
the agent's own restart of the whole group never happens.

torch ends all local workers when one fails; `PerRankContext` overrides the one method that does so.
"""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch.distributed.launcher.api as launcher
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import (
    LogsDest,
    LogsSpecs,
    RunProcsResult,
    SubprocessContext,
)

from elaswave.clock import SYSTEM, Deadline
from elaswave.coordination.local_workers import WORKER_ID, LocalWorkers, new_worker_id
from elaswave.coordination.restart import Limits
from elaswave.coordination.wait_notice import WaitNotice
from elaswave.errors import Fenced

if TYPE_CHECKING:
    from elaswave.coordination.rendezvous import ElasticRendezvous

SPARE_DELAY = "ELASWAVE_SPARE_DELAY_S"
DEFAULT_SPARE_DELAY_S = 3.0
EXIT_AFTER_LEAVE_S = 5.0
"""How long workers may take to exit once they have left."""

log = logging.getLogger("elaswave.launch")


class PerRankContext(SubprocessContext):
    """A process context whose processes live and die on their own."""

    workers: LocalWorkers

    def _poll(self) -> RunProcsResult | None:
        return self.workers.poll()

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        self.workers.stop()
        super()._close(death_sig, timeout)


class StampedLogs(LogsSpecs):
    """Log settings that also give every worker its id: torch shows them the environments before it starts anything."""

    def __init__(self, inner: LogsSpecs) -> None:
        self._inner = inner

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        for env in envs.values():
            env[WORKER_ID] = new_worker_id()
        return self._inner.reify(envs)

    @property
    def root_log_dir(self) -> str:
        return self._inner.root_log_dir


class ElasticAgent(LocalElasticAgent):
    """The agent of one node; see the module's docstring for how it differs from torch's."""

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, *args: Any, **kwargs: Any) -> None:
        super().__init__(spec, StampedLogs(logs_specs), *args, **kwargs)
        self._handler: ElasticRendezvous = spec.rdzv_handler  # type: ignore[assignment]
        self._handler.local_world_size = spec.local_world_size
        self._stock_sigterm: Any = signal.SIG_DFL

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        context = self._pcontext
        if type(context) is SubprocessContext:  # a function entry point keeps torch's own behaviour
            context.__class__ = PerRankContext
            context.workers = LocalWorkers(  # type: ignore[attr-defined]
                context,
                self._handler.node(),
                Limits(max_restarts=worker_group.spec.max_restarts),
                spares=self._handler.settings.spares,
                spare_delay_s=float(os.environ.get(SPARE_DELAY, DEFAULT_SPARE_DELAY_S)),
                notice=self._make_notice(),
            )
            if threading.current_thread() is threading.main_thread():
                self._stock_sigterm = signal.signal(signal.SIGTERM, self._on_sigterm)
        return pids

    def _make_notice(self) -> WaitNotice:
        settings = self._handler.settings
        return WaitNotice(SYSTEM.monotonic(), settings.min_workers, settings.wait_for_workers_s)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        """Ask for a leave at the next look; a second signal does what torch does with the first."""
        self._handler.leaving = True
        signal.signal(signal.SIGTERM, self._stock_sigterm)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        context = self._pcontext
        if not isinstance(context, PerRankContext):
            return super()._monitor_workers(worker_group)
        if self._handler.leaving:
            self._leave(context)
            return RunResult(
                state=WorkerState.SUCCEEDED,
                return_values={worker.global_rank: None for worker in worker_group.workers},
            )
        self._check_membership(context)
        self._book_pids(context, worker_group)
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._book_pids(context, worker_group)
        elif result.state is WorkerState.FAILED:
            self._remaining_restarts = 0  # every rank has used up its own
        return result

    def _check_membership(self, context: PerRankContext) -> None:
        """A node that was cut off comes back as a new one, with fresh workers; any other way out is the end."""
        service = self._handler.node()
        error = service.error
        if error is None or (service.view is not None and service.view.finished):
            return
        if not isinstance(error, Fenced):
            raise error
        log.warning("elaswave: this node is no longer part of the job (%s); joining again as a new node", error)
        context.workers.end_all()
        context.workers.start_all(self._handler.enter())

    def _book_pids(self, context: PerRankContext, worker_group: WorkerGroup) -> None:
        """The base class compares its list of processes with the context's, and takes a difference for a bug."""
        for local_rank, pid in context.pids().items():
            worker_group.workers[local_rank].id = pid

    def _leave(self, context: PerRankContext) -> None:
        """Let the local workers finish the step and go; the others do not notice more than a smaller view."""
        timeout_s = self._handler.settings.leave_timeout_s
        log.warning("elaswave: SIGTERM: leaving after the current step (at most %.0f s)", timeout_s)
        context.workers.end_newcomers()
        self._handler.node().leave(Deadline(timeout_s))
        deadline = Deadline(EXIT_AFTER_LEAVE_S)
        for handler in context.subprocess_handlers.values():
            try:
                handler.proc.wait(deadline.left_s())
            except subprocess.TimeoutExpired:
                break
        context.close(signal.SIGTERM)


def make_agent(spec: WorkerSpec, *args: Any, **kwargs: Any) -> LocalElasticAgent:
    """Our agent for our rendezvous, torch's for any other."""
    ours = spec.rdzv_handler.get_backend() == "elaswave"
    return (ElasticAgent if ours else LocalElasticAgent)(spec, *args, **kwargs)


def install() -> None:
    """Have torchrun build our agent; must happen before `launch_agent` looks the class up."""
    launcher.LocalElasticAgent = make_agent  # type: ignore[misc,assignment]
