"""Looks after the worker processes of one node: replaces the one that died, adopts activated spares, starts new ones.

Everything here runs in the agent's main thread: the kernel ends a worker when the thread that started it ends.
"""

import inspect
import logging
import os
import secrets
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.multiprocessing.api import ProcessFailure, RunProcsResult, SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler, get_subprocess_handler

from elaswave.clock import SYSTEM, Clock
from elaswave.coordination.bootstrap import EXIT_REFUSED
from elaswave.coordination.processes import kill_session
from elaswave.coordination.restart import Action, Death, History, Limits, decide, describe_exit
from elaswave.coordination.wait_notice import WaitNotice
from elaswave.coordination.worker_logs import Destination, WorkerLogs

if TYPE_CHECKING:
    from elaswave.coordination.node import NodeService

WORKER_ID = "ELASWAVE_WORKER_ID"
SPARE = "ELASWAVE_SPARE"

MAX_FAILED_SPARES = 3
RETRY_START_S = 1.0

log = logging.getLogger("elaswave.launch")


def new_worker_id() -> str:
    """12 hex digits, new for every process."""
    return secrets.token_hex(6)


@dataclass(slots=True)
class _Rank:
    """One local rank: the process that holds it now, and what happened before."""

    worker_id: str
    born_s: float
    joined: bool = False
    processes: int = 0  # that came after the first
    history: History = field(default_factory=History)
    start_s: float | None = None  # when its next process is due; None while it has one


@dataclass(slots=True)
class _Spare:
    worker_id: str
    handler: SubprocessHandler
    destination: Destination


class LocalWorkers:
    """The processes of a torch process context, each on its own.

    Args:
        context: started processes; its books are kept up to date.
        service: the node's view of the job.
        limits: restart budget and back-off of each rank.
        spares: warm spares to keep.
        spare_delay_s: how long the membership must have been stable before a spare is started; its imports would
            otherwise compete with a recovery. The first ones start with the workers.
        notice: when to tell that the job stands still.
    """

    def __init__(
        self,
        context: SubprocessContext,
        service: "NodeService",
        limits: Limits,
        spares: int,
        spare_delay_s: float,
        notice: WaitNotice | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._context, self._service, self._limits = context, service, limits
        self._now = clock.monotonic
        self._logs = WorkerLogs(context)
        self._spares_wanted = spares if len(set(context.args.values())) == 1 else 0
        self._spare_delay_s = spare_delay_s
        self._spares: list[_Spare] = []
        self._spares_started = self._spares_failed = 0
        self._hopeless = False
        self._notice = notice
        self._epoch, self._settled_s = -1, self._now()
        self._ranks: dict[int, _Rank] = {}
        for local_rank, handler in context.subprocess_handlers.items():
            rank = self._ranks[local_rank] = _Rank(context.envs[local_rank][WORKER_ID], self._now())
            service.expect(rank.worker_id, local_rank, handler.proc.pid)

    def poll(self) -> RunProcsResult | None:
        """Act on what has happened; a result once no local rank is running or will be."""
        running = self._context._running_local_ranks
        for local_rank in sorted(running):
            self._look_after(local_rank)
        if running:
            self._tend_spares()
            if self._notice is not None and (line := self._notice.look(self._now(), self._service.view)):
                log.warning("elaswave: %s", line)
            return None
        self._context.close()
        failures = self._context._failures
        if len(failures) < self._context.nprocs:  # somebody saw the job through
            return RunProcsResult(
                return_values=dict.fromkeys(range(self._context.nprocs)),
                stdouts=self._context.stdouts,
                stderrs=self._context.stderrs,
            )
        return RunProcsResult(failures=failures, stdouts=self._context.stdouts, stderrs=self._context.stderrs)

    def end_all(self) -> None:
        """Kill every process of this node."""
        for local_rank in self._context._running_local_ranks:
            _end(self._context.subprocess_handlers[local_rank])
        self._end_spares()

    def end_newcomers(self) -> None:
        """Kill the processes that are no members yet: they have nothing to finish, and may import for a while."""
        view = self._service.view
        for local_rank in self._context._running_local_ranks:
            rank = self._ranks[local_rank]
            if not rank.joined and (view is None or view.rank_of(rank.worker_id) is None):
                _end(self._context.subprocess_handlers[local_rank])

    def start_all(self, service: "NodeService") -> None:
        """Have every rank that is not over start afresh, with another service."""
        self._service, self._epoch = service, -1
        for local_rank in self._context._running_local_ranks:
            self._ranks[local_rank].start_s = self._now()

    def stop(self) -> None:
        """Kill the spares and end the tails; the ranks themselves are closed by torch."""
        self._end_spares()
        self._logs.stop()

    def _end_spares(self) -> None:
        for spare in self._spares:
            _end(spare.handler)
        self._spares.clear()

    # -- ranks ------------------------------------------------------------------------------------------------

    def _look_after(self, local_rank: int) -> None:
        rank = self._ranks[local_rank]
        if self._hopeless and not rank.joined:
            self._abandon(local_rank)
            return
        if rank.start_s is not None:
            if self._finished:
                self._end_rank(local_rank)
            elif self._now() >= rank.start_s:
                self._start(local_rank, rank)
            return
        if not rank.joined and (view := self._service.view) is not None:
            rank.joined = view.rank_of(rank.worker_id) is not None
        exit_code = _ended(self._context.subprocess_handlers[local_rank])
        if exit_code is not None:
            self._bury(local_rank, rank, exit_code)

    def _bury(self, local_rank: int, rank: _Rank, exit_code: int) -> None:
        pid = self._context.subprocess_handlers[local_rank].proc.pid
        self._service.forget(rank.worker_id)
        death = Death(
            exit_code=exit_code,
            lived_s=self._now() - rank.born_s,
            joined=rank.joined,
            finished=self._finished,
        )
        verdict = decide(death, rank.history, self._limits)
        rank.history = verdict.history
        if verdict.action is Action.DONE:
            self._end_rank(local_rank)
            return
        log.warning("elaswave: local rank %d (pid %d) died: %s", local_rank, pid, describe_exit(exit_code))
        self._hopeless = self._hopeless or (exit_code == EXIT_REFUSED and rank.joined)
        if exit_code != EXIT_REFUSED and self._adopt_spare(local_rank, rank):
            return
        if verdict.action is Action.GIVE_UP:
            self._book_failure(local_rank, pid, exit_code, verdict.why)
            self._end_rank(local_rank)
            return
        rank.start_s = self._now() + verdict.delay_s
        if verdict.delay_s:
            log.warning("elaswave: it keeps dying young; the next try is in %.1f s", verdict.delay_s)
        self._look_after(local_rank)

    def _abandon(self, local_rank: int) -> None:
        """A member has ended with an error of the whole job, so that whoever comes would only meet it again."""
        handler = self._context.subprocess_handlers[local_rank]
        _end(handler)
        self._book_failure(local_rank, handler.proc.pid, handler.proc.returncode, "the job cannot go on")
        self._end_rank(local_rank)

    def _end_rank(self, local_rank: int) -> None:
        self._context._running_local_ranks.discard(local_rank)

    def _book_failure(self, local_rank: int, pid: int, exit_code: int, why: str) -> None:
        failure = ProcessFailure(
            local_rank=local_rank, pid=pid, exitcode=exit_code, error_file=self._context.error_files[local_rank]
        )
        said = _last_line(self._context.stderrs[local_rank])
        failure.message = f"{describe_exit(exit_code)}: {why}" + (f"\n{said}" if said else "")
        self._context._failures[local_rank] = failure
        log.error("elaswave: local rank %d (pid %d) is not started again: %s", local_rank, pid, failure.message)

    def _start(self, local_rank: int, rank: _Rank) -> None:
        rank.processes += 1
        destination = self._logs.for_restart(local_rank, rank.processes)
        rank.worker_id = new_worker_id()
        env = self._context.envs[local_rank]
        env[WORKER_ID] = rank.worker_id
        env["TORCHELASTIC_RESTART_COUNT"] = str(rank.processes)
        try:
            handler = self._spawn(local_rank, env, destination)
        except OSError as error:
            log.warning("elaswave: cannot start a worker for local rank %d: %s", local_rank, error)
            rank.start_s = self._now() + RETRY_START_S
            return
        self._hand_over(local_rank, rank, handler, destination)
        self._service.expect(rank.worker_id, local_rank, handler.proc.pid)

    def _hand_over(self, local_rank: int, rank: _Rank, handler: SubprocessHandler, to: Destination) -> None:
        self._context.subprocess_handlers[local_rank] = handler
        self._logs.switch(local_rank, to)
        rank.born_s, rank.joined, rank.start_s = self._now(), False, None

    def _spawn(self, local_rank: int, env: dict[str, str], to: Destination) -> SubprocessHandler:
        if env.get("TORCHELASTIC_ERROR_FILE"):
            env["TORCHELASTIC_ERROR_FILE"] = to.error_file
        options: dict[str, Any] = {}
        if "numa_options" in inspect.signature(get_subprocess_handler).parameters:  # torch 2.9 and newer
            options["numa_options"] = getattr(self._context, "_numa_options", None)
        return get_subprocess_handler(
            entrypoint=str(self._context.entrypoint),
            args=self._context.args[local_rank],
            env=env,
            stdout=to.stdout,
            stderr=to.stderr,
            local_rank_id=local_rank,
            **options,
        )

    # -- spares -----------------------------------------------------------------------------------------------

    def _adopt_spare(self, local_rank: int, rank: _Rank) -> bool:
        """Take over the spare that the service has put, or now puts, in the place of a process that has ended."""
        activated = self._service.spare_pid_for(local_rank)
        if activated is None:
            return False
        spare = next((spare for spare in self._spares if spare.worker_id == activated[1]), None)
        if spare is None:
            return False
        self._spares.remove(spare)
        rank.worker_id = spare.worker_id
        spare.handler.local_rank_id = local_rank
        self._hand_over(local_rank, rank, spare.handler, spare.destination)
        log.warning("elaswave: local rank %d is held by a spare now (pid %d)", local_rank, spare.handler.proc.pid)
        return True

    @property
    def _finished(self) -> bool:
        """The last step has been done by somebody: nobody is replaced any more."""
        view = self._service.view
        return view is not None and view.finished

    @property
    def _budget_left(self) -> bool:
        return any(rank.history.restarts < self._limits.max_restarts for rank in self._ranks.values())

    def _tend_spares(self) -> None:
        for spare in [spare for spare in self._spares if _ended(spare.handler) is not None]:
            self._spares.remove(spare)
            self._service.forget(spare.worker_id)
            self._spares_failed += 1
            if self._spares_failed == MAX_FAILED_SPARES:
                log.warning("elaswave: %d spares ended before they were needed; no more are started", MAX_FAILED_SPARES)
        if len(self._spares) >= self._spares_wanted or self._spares_failed >= MAX_FAILED_SPARES:
            return
        view = self._service.view
        if view is None:
            if self._spares_started < self._spares_wanted:
                self._start_spare()
            return
        if view.paused or view.finished or not self._budget_left:
            return
        if view.epoch != self._epoch:
            self._epoch, self._settled_s = view.epoch, self._now()
        if self._now() - self._settled_s >= self._spare_delay_s:
            self._start_spare()

    def _start_spare(self) -> None:
        self._spares_started += 1
        destination = self._logs.for_spare(self._spares_started)
        worker_id = new_worker_id()
        env = {**self._context.envs[0], SPARE: "1", WORKER_ID: worker_id}
        try:
            handler = self._spawn(0, env, destination)
        except OSError as error:
            log.warning("elaswave: cannot start a spare: %s", error)
            self._settled_s = self._now()
            return
        self._spares.append(_Spare(worker_id, handler, destination))
        self._service.expect(worker_id, -1, handler.proc.pid)


def _ended(handler: SubprocessHandler) -> int | None:
    """The exit code of a process that has ended; what it started is ended too."""
    process: subprocess.Popen[bytes] = handler.proc
    if process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        kill_session(process.pid)  # before it is reaped: until then its id cannot be anybody else's
        process.wait()
        _close_files(handler)
    return process.returncode


def _end(handler: SubprocessHandler) -> None:
    if _ended(handler) is None:
        kill_session(handler.proc.pid)
        handler.proc.wait()
        _close_files(handler)


def _close_files(handler: SubprocessHandler) -> None:
    for file in (handler._stdout, handler._stderr):
        if file is not None:
            file.close()


def _last_line(path: str) -> str:
    """The last line of a worker's stderr, when it went to a file that the user may not be looking at."""
    if path in ("", os.devnull):
        return ""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
