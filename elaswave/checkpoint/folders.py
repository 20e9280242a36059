"""The folders of checkpoints: written aside, renamed when complete, the newest few kept.

A name that begins with a dot is never a checkpoint: `.step-00000040.7` is one that the members of view 7 are
writing, `.gone-...` one that is being deleted. So whatever is killed at whatever instant, each `step-...` is whole.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from elaswave.checkpoint import manifest
from elaswave.checkpoint.manifest import KEY
from elaswave.config import Config
from elaswave.errors import ConfigError

SUBFOLDER = "checkpoints"
"""Of a run folder."""

_COMPLETE = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-(\d{8,})\.(\d+)")


def place(config: Config, run_folder: Path | None) -> Path | None:
    """Where a run keeps its checkpoints; None when it has no place for them."""
    if config.checkpoint.folder:
        return Path(config.checkpoint.folder).absolute()
    return None if run_folder is None else run_folder / SUBFOLDER


def complete(parent: Path, step: int) -> Path:
    """Name of a whole checkpoint."""
    return parent / f"step-{step:08d}"


def partial(parent: Path, step: int, epoch: int) -> Path:
    """Name of a checkpoint while the members of a view write it."""
    return parent / f".step-{step:08d}.{epoch}"


def found(parent: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not parent.is_dir():
        return []
    steps = [(int(match[1]), path) for path in parent.iterdir() if (match := _COMPLETE.fullmatch(path.name))]
    return [path for _, path in sorted(steps) if (path / manifest.FILE).is_file()]


def resolve(path: str) -> Path:
    """The checkpoint that a setting means, by its own name: links such as `latest` move on.

    Args:
        path: of a checkpoint, of a folder of checkpoints, or of a run; the newest is taken.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(path).resolve()
    if (folder / manifest.FILE).is_file():
        return folder
    for parent in (folder, folder / SUBFOLDER):
        if steps := found(parent):
            return steps[-1]
    if not folder.exists():
        raise ConfigError(KEY, path, "no such folder")
    raise ConfigError(KEY, path, "holds no complete checkpoint; give a run folder or one of its checkpoints/step-...")


def publish(aside: Path, final: Path) -> bool:
    """Give a checkpoint that is whole its name; false when another worker was faster.

    A whole checkpoint of that name from an earlier run gives way.
    """
    for _ in range(2):
        try:
            os.rename(aside, final)
        except FileNotFoundError:
            return False
        except OSError:
            if not final.is_dir():
                raise
            remove(final)
            continue
        sync(final.parent)
        return True
    return False


def prune(parent: Path, keep: int) -> None:
    """Delete all whole checkpoints but the newest, and unfinished ones that are older."""
    steps = found(parent)
    for old in steps[:-keep]:
        remove(old)
    newest = int(steps[-1].name.partition("-")[2]) if steps else -1
    for path in parent.iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if path.name.startswith(".gone-") or (match and int(match[1]) < newest):
            shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint; from the first instant on it is none."""
    aside = folder.with_name(f".gone-{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def write_file(path: Path, data: str) -> None:
    """Write a file that is there as a whole or not at all, on the disk when this returns."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
