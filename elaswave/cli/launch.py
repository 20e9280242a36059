"""`elaswave launch CONFIG --workers N`: check everything, make the run folder, and run torchrun's agents to the end."""

import argparse
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elaswave import config as settings
from elaswave.checkpoint import folders, manifest
from elaswave.cli.agents import Agents, JobSpec, share
from elaswave.config import FILE_SOURCES, Config
from elaswave.coordination import launch_settings, run_folder
from elaswave.errors import ConfigError, LaunchError
from elaswave.models.shape import shape_of
from elaswave.planner.scheduler import check_stages

FAULTS = "ELASWAVE_FAULTS"
"""Path of the scenario that the workers inject into themselves."""
WORKER_MODULE = "elaswave.train"
TICK_S = 0.1
STOP_MARGIN_S = 10.0
"""On top of a planned leave, for the processes to end."""

EPILOG = """\
Every setting of the config can be given on the command line:
  elaswave launch configs/train/gpt_tiny.toml --workers 4 --training.steps 50 --elasticity.spares 0

SIGINT or SIGTERM lets the workers finish their step and stops the job; a second one kills it.
Exit status: 0 finished, 1 failed, 2 wrong use, 128+N stopped by signal N."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended: exit status, and the run folder with its events."""

    status: int
    folder: Path


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status of the job. Raises like `launch`."""
    return launch(argv).status


def launch(argv: Sequence[str], *, brief: bool = False) -> Outcome:
    """Run a job to its end.

    Args:
        argv: the words behind `elaswave launch`.
        brief: leave out what a caller tells at the end.

    Raises:
        ConfigError: a setting or an argument is wrong; nothing has been started.
        LaunchError: run folder or port cannot be used; nothing has been started.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    config = settings.load(arguments.config, overrides)
    _check_counts(arguments.workers, arguments.agents)
    check_corpus(config)
    check_model(config)
    overrides = [*overrides, *resolved(config)]
    if arguments.faults is not None:
        _check_faults(arguments.faults)
    port = _usable_port(arguments.port)
    folder = run_folder.create(Path(config.run.folder), config.run.name, space_bytes=space_needed(config))
    job = JobSpec(
        run_id=folder.name,
        workers=share(arguments.workers, arguments.agents),
        port=port,
        log_dir=str(folder / "logs"),
        command=(WORKER_MODULE, "--config", os.path.abspath(arguments.config), *overrides),
        environment=_environment(config, folder, arguments.faults),
    )
    _say(f"run folder {os.path.relpath(folder)}; starting {arguments.workers} workers")
    if arguments.workers < config.elasticity.min_workers:
        _say(_too_few(config, job, arguments.workers))
    return Outcome(status=_run_to_the_end(config, job, folder, arguments.faults, brief), folder=folder)


def _run_to_the_end(config: Config, job: JobSpec, folder: Path, faults: str | None, brief: bool) -> int:
    from elaswave.cli.onlooker import Onlooker

    onlooker = Onlooker(config, folder, faults)
    agents = Agents(job, config.elasticity.leave_timeout_s + STOP_MARGIN_S, _say)
    try:
        status = agents.wait(onlooker.tick, TICK_S)
    finally:
        agents.kill()
        onlooker.finish(table=not brief)
    where = os.path.relpath(folder)
    if status:
        _say(f"ended with status {status}; the messages are above, the events in {where}")
    elif not brief:
        _say(f"finished; see: elaswave report {where}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elaswave launch",
        description="Train a config on this machine, with workers that may die and come back.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file, such as configs/train/gpt_tiny.toml")
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="worker processes of the whole job")
    parser.add_argument(
        "--agents", type=int, default=1, metavar="A", help="torchrun agents that share the workers (default 1)"
    )
    parser.add_argument("--faults", metavar="FILE", help="scenario of faults to inject, such as configs/faults/x.toml")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="loopback port (default: a free one)")
    return parser


def _check_counts(workers: int, agents: int) -> None:
    if workers < 1:
        raise ConfigError("--workers", workers, "give at least 1")
    if not 1 <= agents <= workers:
        raise ConfigError("--agents", agents, f"give 1 to {workers}: every agent runs at least one worker")


def check_model(config: Config) -> None:
    """Raise ConfigError when a model of the package cannot be cut as wanted; workers find out about others."""
    shape = shape_of(config.model)
    if shape is not None:
        check_stages(config.parallelism, len(shape.costs))


def check_corpus(config: Config) -> None:
    """Raise ConfigError when the data that training reads is not there."""
    data = config.data
    if data.source not in FILE_SOURCES:
        return
    path = Path(data.path)
    if not path.exists():
        raise ConfigError("data.path", data.path, "no such file or folder")
    if not os.access(path, os.R_OK):
        raise ConfigError("data.path", data.path, "cannot be read by this user")
    if data.source == "tokens":
        needed_bytes = 2 * (config.model.sequence_length + 1)
        if path.is_dir() or path.stat().st_size < needed_bytes:
            raise ConfigError(
                "data.path", data.path, f"must be a file of at least {needed_bytes} bytes: one sample of uint16 ids"
            )
    elif path.is_dir() and not any(child.is_file() for child in path.rglob("*")):
        raise ConfigError("data.path", data.path, "this folder holds no files")


def resolved(config: Config) -> tuple[str, ...]:
    """The checkpoint to start from as an override, by its own name: `latest` is about to be another run.

    Raises:
        ConfigError: it is not there, or is of another kind of run.
    """
    if not config.checkpoint.resume:
        return ()
    folder = folders.resolve(config.checkpoint.resume)
    found = manifest.read(folder)
    changed = manifest.check(found, config, folder)
    _say(f"goes on after step {found.step} of {config.training.steps}, from {os.path.relpath(folder)}")
    for text in changed:
        _say(f"another setting than there, the bits will differ: {text}")
    return (f"--checkpoint.resume={folder}",)


def space_needed(config: Config) -> int:
    """Bytes a run may write: its events, and its checkpoints plus the one that is being written."""
    if config.checkpoint.every_steps == 0:
        return run_folder.SPACE_BYTES
    model = config.model
    parameters = 12 * model.layers * model.width**2 + (model.vocabulary + model.sequence_length) * model.width
    return run_folder.SPACE_BYTES + 12 * parameters * (config.checkpoint.keep + 1)  # fp32 weight and two moments


def _check_faults(path: str) -> None:
    from elaswave.faults import scenario

    scenario.load(path)


def _usable_port(port: int) -> int:
    if port == 0:
        return launch_settings.free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise LaunchError(f"port {port} of 127.0.0.1 cannot be used ({error}); choose another --port") from None
    return port


def _environment(config: Config, folder: Path, faults: str | None) -> dict[str, str]:
    variables = {
        run_folder.VARIABLE: str(folder),
        launch_settings.SETTINGS: json.dumps(config.elasticity.model_dump(mode="json", exclude_unset=True)),
        launch_settings.SPARES: str(config.elasticity.spares),
        launch_settings.GRACE: "0.05",
        launch_settings.FOLLOWED: "1",
        "OMP_NUM_THREADS": str(config.training.threads),
    }
    if faults is not None:
        variables[FAULTS] = os.path.abspath(faults)
    return variables


def _too_few(config: Config, job: JobSpec, workers: int) -> str:
    """What a job that is short of workers tells its user: what it waits for, how long, and how to help."""
    wait_s = config.elasticity.wait_for_workers_s
    torchrun = shutil.which("torchrun", path=os.path.dirname(sys.executable)) or "torchrun"
    return (
        f"{workers} workers are fewer than elasticity.min_workers = {config.elasticity.min_workers}: "
        f"the job waits {wait_s:.0f} s for more. To add one:\n"
        f"  {run_folder.VARIABLE}={job.environment[run_folder.VARIABLE]} {torchrun} --nnodes=1:1000 --nproc-per-node=1 "
        f"--rdzv-backend=elaswave --rdzv-endpoint=127.0.0.1:{job.port} --rdzv-id={job.run_id} --max-restarts=1000 "
        f"-m {' '.join(job.command)}"
    )


def _say(line: str) -> None:
    print(f"elaswave: {line}", flush=True)
