"""The secret that the processes of one job share, so that nobody else can speak to them.

It never goes into arguments, logs or run folders: it comes from the environment, or from a file that only its owner
can read.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from elaswave.errors import LaunchError

VARIABLE = "ELASWAVE_SECRET"
FILE_VARIABLE = "ELASWAVE_SECRET_FILE"
BYTES_MIN = 16


def job_secret(run_id: str) -> bytes:
    """The key of job `run_id`: 32 bytes, derived from the base secret with HMAC-SHA256.

    The base secret is `ELASWAVE_SECRET`, else the content of the file `ELASWAVE_SECRET_FILE`, else that of
    `~/.config/elaswave/secret`, which is made on first use.

    Raises:
        LaunchError: the secret is too short, or its file cannot be read or is open to others.
    """
    return hmac.digest(_base_secret(), b"elaswave job " + run_id.encode(), hashlib.sha256)


def _base_secret() -> bytes:
    given = os.environ.get(VARIABLE)
    if given:
        return _long_enough(given.encode(), VARIABLE)
    path = os.environ.get(FILE_VARIABLE)
    if path:
        return _read(Path(path), FILE_VARIABLE)
    own = Path.home() / ".config" / "elaswave" / "secret"
    _create(own)
    return _read(own, "the secret of this user")


def _long_enough(value: bytes, source: str) -> bytes:
    value = value.strip()
    if len(value) < BYTES_MIN:
        raise LaunchError(f"{source} has {len(value)} bytes; give at least {BYTES_MIN} random ones")
    return value


def _read(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            value = file.read(4096)
    except OSError as error:
        raise LaunchError(f"{source}: cannot read {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LaunchError(f"{source}: others may read {path}; run: chmod 600 {path}")
    return _long_enough(value, f"{source} ({path})")


def _create(path: Path) -> None:
    """Make the file with a random secret unless it is there; of several processes that try, one wins."""
    if path.exists():
        return
    aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    except OSError as error:
        raise LaunchError(
            f"cannot make {path}: {error.strerror}; set {VARIABLE} or {FILE_VARIABLE} to a secret of your own"
        ) from error
