"""The rendezvous handler behind `torchrun --rdzv-backend=elaswave`: every agent runs a node's service, and survivors
are never restarted.

torchrun loads this module through the entry point group `torchrun.handlers` while it is still importing itself, in
every process that imports torch's rendezvous package: nothing heavy may be imported at its top.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from elaswave.coordination.node_events import NodeEvents

if TYPE_CHECKING:
    from torch.distributed import Store

    from elaswave.config import Elasticity
    from elaswave.coordination.node import NodeService

WORKERS_PER_NODE = "ELASWAVE_WORKERS_PER_NODE"
"""Workers of this node, where torchrun's command line does not tell."""
BARRIER_LOOK_S = 0.2

log = logging.getLogger("elaswave.launch")


def get_handler() -> Callable[[RendezvousParameters], "ElasticRendezvous"]:
    """The entry point: returns what makes a handler."""
    return create_handler


def create_handler(params: RendezvousParameters) -> "ElasticRendezvous":
    """Check everything that can be checked before a process is started, and put our agent in torchrun's place.

    Raises:
        ConfigError: endpoint or a setting is wrong.
        LaunchError: this torch is too old.
    """
    from elaswave.coordination import bootstrap, torch_contract
    from elaswave.coordination.launch_settings import FOLLOWED, seeds_of, settings_of
    from elaswave.errors import LaunchError

    _show_our_errors_plainly()
    if os.environ.get(FOLLOWED) == "1":
        log.setLevel(logging.ERROR)
    if (message := torch_contract.too_old()) is not None:
        raise LaunchError(message)
    settings = settings_of(params.config, os.environ, _command_of_workers())
    handler = ElasticRendezvous(params, settings, seeds_of(params.endpoint, params.max_nodes))
    found = torch_contract.problems()
    if not found:
        from elaswave.coordination import local_agent

        os.environ.pop(bootstrap.SUPERVISE, None)
        local_agent.install()
        return handler
    handler.supervised = True
    os.environ[bootstrap.SUPERVISE] = "1"
    log.warning(
        "elaswave: torchrun's agent is left as it is, each worker gets a supervisor instead "
        "(start your own scripts with -m elaswave.coordination.supervise): %s",
        "; ".join(found),
    )
    return handler


class ElasticRendezvous(RendezvousHandler):
    """One agent's end of the control plane, in torchrun's words.

    Attributes:
        settings: timeouts, spares, bind address.
        local_world_size: workers of this node; the agent sets it, torchrun does not tell its handlers.
        leaving: SIGTERM came; this node goes, the job stays.
        supervised: torchrun's own agent is in charge, and supervisors replace workers.
    """

    def __init__(self, params: RendezvousParameters, settings: "Elasticity", seeds: list[tuple[str, int]]) -> None:
        self.settings, self.seeds = settings, seeds
        self.local_world_size: int | None = None
        self.leaving = False
        self.supervised = False
        self._params = params
        self._service: NodeService | None = None
        self._events = NodeEvents()
        self._witness_folder: Path | None = None

    def get_backend(self) -> str:
        return "elaswave"

    @property
    def use_agent_store(self) -> bool:
        return False  # else workers would take MASTER_ADDR:MASTER_PORT for a TCPStore of ours

    def get_run_id(self) -> str:
        return self._params.run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to close: a job ends when its workers have finished."""

    def num_nodes_waiting(self) -> int:
        return 0  # anything else makes torchrun restart all local workers

    def node(self) -> "NodeService":
        """The node's service; only there after `next_rendezvous`."""
        from elaswave.errors import LaunchError

        if self._service is None:
            raise LaunchError("the node's service has not been started")
        return self._service

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the node's service, wait until it has found the job, and set the workers' environment.

        Rank and size are those at the start; workers take theirs from the view.

        Raises:
            LaunchError: the service could not be started, or a supervised worker gave up.
            AuthenticationError, RefusedError, DeadlineExceeded: the job does not take this node in.
        """
        from elaswave.errors import LaunchError

        if self._service is None:
            self.enter()
        elif self.supervised:
            raise self._service.error or LaunchError("a worker of this node gave up; its own message is above")
        os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks without store traffic, which would block latecomers
        index = self.node().node_index
        size = max(index + 1, self._params.min_nodes)
        return RendezvousInfo(cast("Store", ExitBarrier(self)), index, size, RendezvousStoreInfo("127.0.0.1", 0))

    def enter(self) -> "NodeService":
        """Make this process a node of the job, in place of a service it had before; sets the workers' environment.

        Raises:
            LaunchError, AuthenticationError, RefusedError, DeadlineExceeded: the job does not take this node in.
        """
        from elaswave.coordination import bootstrap, run_folder

        self.shutdown()
        service = self._service = self._make_service()
        service.start()
        run_id = self.get_run_id()
        folder = run_folder.known_before_start(run_id, os.environ)
        if folder is None:
            folder = run_folder.of_torchrun(run_id, service.job_started, os.environ)
        self._events.open(self._make_folder(folder, service.node_index), service.node_id)
        os.environ.update(service.worker_env())
        os.environ[run_folder.VARIABLE] = str(folder)
        os.environ[bootstrap.PARENT_PID] = str(os.getpid())
        return service

    def shutdown(self) -> bool:
        if self._service is not None:
            self._service.stop()
        return True

    @staticmethod
    def _make_folder(folder: Path, index: int) -> Path:
        from elaswave.coordination import run_folder
        from elaswave.errors import LaunchError

        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(
                f"cannot make the run folder {folder}: {error.strerror}; set {run_folder.PARENT_VARIABLE}"
            ) from error
        if new:
            remedy = f"name another place in {run_folder.PARENT_VARIABLE}"
            run_folder.check_space(folder, run_folder.SPACE_BYTES, remedy)
        if index == 0:
            run_folder.point_latest(folder)
        return folder

    def _make_service(self) -> "NodeService":
        from elaswave.coordination import run_folder
        from elaswave.coordination.launch_settings import GRACE
        from elaswave.coordination.node import NodeService
        from elaswave.coordination.processes import kill_session
        from elaswave.coordination.secret import job_secret
        from elaswave.coordination.timeouts import Timeouts
        from elaswave.events import Recorder

        timeouts = Timeouts.from_settings(self.settings)
        if os.environ.get(GRACE):
            timeouts = dataclasses.replace(timeouts, grace_s=float(os.environ[GRACE]))
        run_id = self.get_run_id()
        if self._witness_folder is None:  # where all nodes look for it before they have agreed on anything
            known = run_folder.known_before_start(run_id, os.environ)
            self._witness_folder = known or run_folder.parent_of_runs(os.environ)
        return NodeService(
            run_id=run_id,
            secret=job_secret(run_id),
            seeds=self.seeds,
            bind=self._bind_address(),
            expected_workers=self.local_world_size or _workers_per_node(),
            min_nodes=self._params.min_nodes,
            min_workers=self.settings.min_workers,
            run_folder=self._witness_folder,
            timeouts=timeouts,
            recorder=Recorder((self._events,), {"pid": os.getpid()}),
            on_kill=kill_session,
        )

    def _bind_address(self) -> str:
        """The configured address; else that of the interface which leads to the first seed that is not this host."""
        if "bind" in self.settings.model_fields_set:
            return self.settings.bind
        if self._params.local_addr:
            return self._params.local_addr
        for host, port in self.seeds:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((host, port))  # sends nothing: only asks the routing table
                return str(probe.getsockname()[0])
        return self.settings.bind


class ExitBarrier:
    """What torchrun's agent takes for a store: it is used only to wait until every worker of the job has finished."""

    def __init__(self, handler: ElasticRendezvous) -> None:
        self._handler = handler
        self.timeout = timedelta(seconds=300)

    def set_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout

    def add(self, _key: str, _amount: int) -> int:
        return 0

    def set(self, _key: str, _value: object) -> None:
        """Nobody reads it."""

    def wait(self, _keys: list[str], *_: object) -> None:
        """Return when the job is complete or this node leaves it; raise DeadlineExceeded after `timeout`."""
        from elaswave.clock import Deadline
        from elaswave.errors import DeadlineExceeded, ElasWaveError

        service, deadline = self._handler.node(), Deadline(self.timeout.total_seconds())
        while not self._handler.leaving:
            try:
                service.wait_finished(Deadline(min(BARRIER_LOOK_S, deadline.left_s())))
            except DeadlineExceeded:
                if deadline.passed():
                    raise
            except ElasWaveError:
                if service.view is None or not service.view.finished:
                    raise
                return  # the others had no more need for this node
            else:
                return


def _workers_per_node() -> int:
    """`--nproc-per-node` of the running torchrun, which its own agent knows but does not tell."""
    from torch.distributed import run

    from elaswave.errors import LaunchError

    given = os.environ.get(WORKERS_PER_NODE)
    if given:
        return int(given)
    try:
        return int(str(run.determine_local_world_size(run.parse_args(sys.argv[1:]).nproc_per_node)))
    except (SystemExit, ValueError, AttributeError) as error:
        raise LaunchError(f"cannot tell the number of workers of this node; set {WORKERS_PER_NODE}") from error


def _command_of_workers() -> list[str]:
    """Module and arguments that the running torchrun gives its workers; empty for a script, or when it cannot tell."""
    from torch.distributed import run

    try:
        given = run.parse_args(sys.argv[1:])
        return [given.training_script, *given.training_script_args] if given.module else []
    except (SystemExit, AttributeError):
        return []


def _show_our_errors_plainly() -> None:
    """End the agent without torchrun's own call stack when the error is meant for people: ours, or a failed worker."""
    from elaswave.errors import ElasWaveError

    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, ElasWaveError):
            sys.stderr.write(f"elaswave: error: {error}\n")
        elif kind.__name__ == "ChildFailedError":
            sys.stderr.write(f"{error}\n")
        else:
            before(kind, error, trace)

    sys.excepthook = show
