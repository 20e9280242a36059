"""What torchrun runs on every worker: read the config, train, and end with a status that says whether to try again."""

import argparse
import sys
from collections.abc import Sequence

from elaswave.coordination import bootstrap


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status of the worker: 0 done, 65 would only fail again, 66 no longer a member."""
    bootstrap.start()  # before torch is imported
    from elaswave.errors import AuthenticationError, ConfigError, Dismissed, Fenced, LaunchError, RefusedError

    try:
        _train(sys.argv[1:] if argv is None else argv)
    except Dismissed:
        return 0
    except (ConfigError, RefusedError, AuthenticationError, LaunchError) as error:
        return _fail(error, bootstrap.EXIT_REFUSED)
    except Fenced as error:
        return _fail(error, bootstrap.EXIT_FENCED)
    return 0


def _train(argv: Sequence[str]) -> None:
    from elaswave import session, trainer
    from elaswave.config import load

    parser = argparse.ArgumentParser(prog="elaswave.train", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file")
    arguments, overrides = parser.parse_known_args(argv)
    config = load(arguments.config, overrides)
    recorder = session.open_recorder(config)
    trainer.train(config, recorder=recorder, probe=session.open_probe(recorder))


def _fail(error: Exception, status: int) -> int:
    sys.stderr.write(f"elaswave: error: {error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
