"""Make the folder of a run: a new name, a place that can be written, and `latest` pointing at it."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from elaswave.clock import SYSTEM
from elaswave.errors import LaunchError

VARIABLE = "ELASWAVE_RUN_FOLDER"
"""The folder of this run; the launcher sets it for the workers."""
PARENT_VARIABLE = "ELASWAVE_RUNS"
"""Where plain torchrun makes run folders; `runs` in the working directory when not set."""

SPACE_BYTES = 64 * 2**20
"""What events, logs and reports of a run may need."""


def create(parent: Path, name: str, *, wall_s: float | None = None, space_bytes: int = SPACE_BYTES) -> Path:
    """Make `parent/<utc>-<name>`, check that it can be used, and let `parent/latest` point at it.

    Args:
        parent: made if it is not there.
        name: anything; characters that are unsafe in file names are replaced.
        wall_s: seconds since 1970; now when None.
        space_bytes: free space that must be left on the disk.

    Raises:
        LaunchError: it cannot be made or written, or the disk is full.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _make_new(parent, f"{stamp(SYSTEM.wall() if wall_s is None else wall_s)}-{_safe(name)}")
        _check_writable(folder)
    except OSError as error:
        raise LaunchError(
            f"cannot make a run folder in {parent}: {error.strerror}; choose another place with --run.folder"
        ) from error
    check_space(parent, space_bytes)
    point_latest(folder)
    return folder.absolute()


def known_before_start(run_id: str, environ: Mapping[str, str]) -> Path | None:
    """The run folder of a job that `elaswave launch` made, which its name gives away; None for any other."""
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE]).absolute()
    if re.fullmatch(r"\d{8}-\d{6}-.+", run_id):
        return parent_of_runs(environ) / run_id
    return None


def of_torchrun(run_id: str, started: str, environ: Mapping[str, str]) -> Path:
    """The run folder of a job that torchrun started: every node derives the same.

    Args:
        run_id: torchrun's `--rdzv-id`.
        started: UTC time at which the job's first node came up, as every node was told.
    """
    return parent_of_runs(environ) / f"{_safe(started)}-{_safe(run_id)}"


def parent_of_runs(environ: Mapping[str, str]) -> Path:
    """Where torchrun's jobs make their run folders; shared storage when they span hosts."""
    return Path(environ.get(PARENT_VARIABLE) or "runs").absolute()


def stamp(wall_s: float) -> str:
    """UTC time as it begins the names of folders: `20260131-235959`."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(wall_s))


def check_space(folder: Path, space_bytes: int, remedy: str = "choose another place with --run.folder") -> None:
    """Raise LaunchError when the disk of `folder` has less free space than that."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < space_bytes:
        raise LaunchError(
            f"only {free_bytes / 2**20:.0f} MiB are free in {folder}, the run may need {space_bytes / 2**20:.0f} MiB; "
            f"make room, or {remedy}"
        )


def point_latest(folder: Path) -> None:
    """Let `latest` beside the folder point at it, at once and for any number of concurrent runs."""
    aside = folder.parent / f".latest-{os.getpid()}"
    try:
        aside.unlink(missing_ok=True)
        aside.symlink_to(folder.name, target_is_directory=True)
        aside.replace(folder.parent / "latest")
    except OSError:  # a file system without links, or something else of that name: only a convenience is lost
        aside.unlink(missing_ok=True)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"


def _make_new(parent: Path, name: str) -> Path:
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = parent / (name + suffix)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise LaunchError(f"{parent / name} and a thousand like it exist already")


def _check_writable(folder: Path) -> None:
    probe = folder / ".probe"
    probe.write_bytes(b"x" * 4096)
    probe.unlink()
