"""Claims on faults: files in the run folder, so that a fault strikes once in the life of a run."""

import os
from pathlib import Path


def claim(run_folder: Path, number: int, rank: int) -> bool:
    """True for the first caller of the run, false for every other."""
    folder = run_folder / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / f"{number}-rank-{rank}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True
