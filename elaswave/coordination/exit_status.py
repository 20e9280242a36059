"""How a worker's error becomes its exit status, which tells its agent whether to start it again."""

from elaswave import errors
from elaswave.coordination.bootstrap import EXIT_FENCED, EXIT_REFUSED

_STATUSES: tuple[tuple[type[errors.ElasWaveError], int], ...] = (
    (errors.Dismissed, 0),
    (errors.Fenced, EXIT_FENCED),
    # what a fresh process would meet again: a wrong setting, a job that refuses this worker or has given up, state
    # that is gone or corrupt, a gradient beyond the range of exact sums
    (errors.ConfigError, EXIT_REFUSED),
    (errors.RefusedError, EXIT_REFUSED),
    (errors.AuthenticationError, EXIT_REFUSED),
    (errors.LaunchError, EXIT_REFUSED),
    (errors.Unrecoverable, EXIT_REFUSED),
    (errors.CorruptState, EXIT_REFUSED),
    (errors.NumericsError, EXIT_REFUSED),
)


def status_of(error: BaseException) -> int | None:
    """Exit status of a worker that ends with `error`; None when it says nothing about a next try."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), None)
