"""A file in the run folder that says the job has committed a step, so that it never silently begins again."""

from pathlib import Path

NAME = "began"


def began(run_folder: Path | None) -> bool:
    """Whether some worker of the job has committed a step; false when there is no run folder."""
    return run_folder is not None and (run_folder / NAME).exists()


def mark_begun(run_folder: Path | None) -> None:
    """Leave the mark; telemetry of a full disk must not stop a step."""
    if run_folder is None:
        return
    try:
        (run_folder / NAME).touch()
    except OSError:
        return
