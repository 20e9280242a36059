"""The witness: a file that only one side of a split job can make, on storage that both see."""

import os
from collections.abc import Callable
from pathlib import Path

FOLDER = "witness"


def file_witness(run_folder: Path | None, owner: str) -> Callable[[str], bool | None]:
    """A function that takes the witness of a given name.

    It returns True when this call made the file, False when somebody else had made it, None when there is no place
    for it. Creating a file exclusively is atomic on local file systems and on NFS from version 3 on.

    Names are LINEAGE-NUMBER. Number 0 is made when the job forms; whoever does not see it looks at other storage, and
    has no witness.
    """

    def take(name: str) -> bool | None:
        if run_folder is None:
            return None
        path = run_folder / FOLDER / name
        lineage, _, number = name.rpartition("-")
        if number != "0" and not path.with_name(f"{lineage}-0").exists():
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        except OSError:
            return None
        with os.fdopen(descriptor, "w") as file:
            file.write(owner + "\n")
        return True

    return take
