"""What torchrun runs on every worker: read the config, train, and end with a status that says whether to try again."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elaswave.coordination import bootstrap

if TYPE_CHECKING:
    from elaswave.config import Config
    from elaswave.events import Recorder
    from elaswave.faults.probe import Probe

EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status of the worker: 0 done, 65 would only fail again, 66 no longer a member."""
    bootstrap.start()
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
    from elaswave.config import load

    parser = argparse.ArgumentParser(prog="elaswave.train", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file")
    arguments, overrides = parser.parse_known_args(argv)
    config = load(arguments.config, overrides)
    _run(config)


def _run(config: "Config") -> None:
    from elaswave import trainer
    from elaswave.coordination.launch_settings import FOLLOWED
    from elaswave.coordination.run_folder import VARIABLE
    from elaswave.events import Recorder, Sink
    from elaswave.telemetry.jsonl import JsonlSink
    from elaswave.telemetry.plain import PlainProgress

    sinks: list[Sink] = []
    folder = os.environ.get(VARIABLE)
    worker_id = os.environ.get("ELASWAVE_WORKER_ID", f"{os.getpid():012x}")
    if folder:
        sinks.append(JsonlSink(folder, worker_id=worker_id))
    if config.run.progress and os.environ.get(FOLLOWED) != "1":
        sinks.append(PlainProgress(config.training.steps))
    recorder = Recorder(tuple(sinks), {"worker_id": worker_id, "pid": os.getpid()})
    trainer.train(config, recorder=recorder, probe=_probe(folder, recorder))


def _probe(folder: str | None, recorder: "Recorder") -> "Probe | None":
    """The faults that this worker is to inject into itself, if any."""
    scenario = os.environ.get("ELASWAVE_FAULTS")
    if not scenario or not folder:
        return None
    from elaswave.faults.probe import make_probe
    from elaswave.faults.scenario import load

    return make_probe(load(scenario), Path(folder), lambda: int(recorder.identity.get("rank", -1)), recorder)


def _fail(error: Exception, status: int) -> int:
    sys.stderr.write(f"elaswave: error: {error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
