"""What torchrun runs on every worker: read the config, train, and end with a status that says whether to try again."""

import sys
from collections.abc import Sequence

from elaswave.coordination import bootstrap


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status of the worker: 0 done, 65 would only fail again, 66 no longer a member."""
    bootstrap.start()  # before torch is imported
    from elaswave.coordination.exit_status import status_of
    from elaswave.errors import ElasWaveError

    try:
        _train(sys.argv[1:] if argv is None else argv)
    except ElasWaveError as error:
        status = status_of(error)
        if status is None:
            raise
        if status:
            sys.stderr.write(f"elaswave: error: {error}\n")
        return status
    return 0


def _train(argv: Sequence[str]) -> None:
    from elaswave.config import load_command

    config = load_command(argv, "elaswave.train")
    from elaswave import session, trainer  # a wrong config is told before torch is imported

    recorder = session.open_recorder(config)
    trainer.train(config, recorder=recorder, probe=session.open_probe(recorder))


if __name__ == "__main__":
    sys.exit(main())
