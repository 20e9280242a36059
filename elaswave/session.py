"""`elaswave.join`: a job with everything around it, as the environment says: its events, its progress, its faults."""

import os
import sys
from pathlib import Path
from types import TracebackType

from elaswave.config import Config
from elaswave.coordination import bootstrap
from elaswave.coordination.agent import NODE_SOCKET
from elaswave.coordination.exit_status import status_of
from elaswave.coordination.launch_settings import FOLLOWED
from elaswave.coordination.run_folder import VARIABLE
from elaswave.events import Recorder, Sink
from elaswave.faults import scenario
from elaswave.faults.probe import make_probe
from elaswave.runtime import job
from elaswave.runtime.job import Probe
from elaswave.telemetry.jsonl import JsonlSink
from elaswave.telemetry.plain import PlainProgress
from elaswave.telemetry.runs import CONFIG_FILE, write_config

FAULTS = "ELASWAVE_FAULTS"
"""Path of the scenario whose faults workers inject into themselves."""


def join(config: Config) -> job.Job:
    """Connect this process to its job; without a launcher, make a job of one process.

    Events go into the run folder when there is one, progress to standard output unless somebody else shows it.

    Args:
        config: the whole run; the same on every worker.

    Raises:
        AuthenticationError: this process does not know the job's secret.
        DeadlineExceeded: the node's service did not answer in time.
    """
    bootstrap.die_with_parent()
    if NODE_SOCKET in os.environ:
        _tell_the_agent_by_status()
    recorder = open_recorder(config)
    return job.join(config, recorder=recorder, probe=open_probe(recorder))


def _tell_the_agent_by_status() -> None:
    """Have errors of ours that the script lets through end it with the status that its agent understands."""
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        status = status_of(error)
        if status is None:
            before(kind, error, trace)
            return
        if status:
            sys.stderr.write(f"elaswave: error: {error}\n")
        raise SystemExit(status)

    sys.excepthook = show


def open_recorder(config: Config) -> Recorder:
    """Where this worker's events go."""
    sinks: list[Sink] = []
    folder = os.environ.get(VARIABLE)
    worker_id = os.environ.get("ELASWAVE_WORKER_ID") or f"{os.getpid():012x}"
    if folder:
        sinks.append(JsonlSink(folder, worker_id=worker_id))
        keep_config(Path(folder), config)
    if config.run.progress and os.environ.get(FOLLOWED) != "1":
        sinks.append(PlainProgress(config.training.steps))
    return Recorder(tuple(sinks), {"worker_id": worker_id, "pid": os.getpid()})


def keep_config(folder: Path, config: Config) -> None:
    """Put the settings into the run folder, where reports look for them; a full disk must not end the training."""
    if (folder / CONFIG_FILE).exists():
        return
    try:
        write_config(folder, config.model_dump(mode="json"))
    except OSError:
        return


def open_probe(recorder: Recorder) -> Probe | None:
    """The faults that this worker is to inject into itself, if any."""
    path, folder = os.environ.get(FAULTS), os.environ.get(VARIABLE)
    if not path or not folder:
        return None
    return make_probe(scenario.load(path), Path(folder), lambda: int(recorder.identity.get("rank", -1)), recorder)
