"""Which errors are worth another try."""

import pytest

from elaswave import errors
from elaswave.coordination.exit_status import status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Dismissed("done"), 0),
        (errors.Unrecoverable("gone"), 65),
        (errors.CorruptState("bad"), 65),
        (errors.ConfigError("a.b", 1, "no"), 65),
        (errors.AuthenticationError("who"), 65),
        (errors.Fenced("out"), 66),
        (errors.DeadlineExceeded("late"), None),
        (RuntimeError("bug"), None),
    ],
)
def test_status(error: Exception, status: int | None):
    assert status_of(error) == status
