"""The `elaswave` command: finds the subcommand's module by name and hands it the rest of the line.

A subcommand `x` is the module `elaswave.cli.x` with `run(argv) -> int`, imported only when it is called, so that
commands which need no torch start at once.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence

from elaswave.errors import ConfigError, ElasWaveError

COMMANDS = {
    "launch": "train a config on this machine, with workers that may die and come back",
    "demo": "a short guided run: train, kill a worker, compare with an unharmed run",
    "verify": "compare two runs step by step, bit by bit",
    "report": "what happened in a run: recoveries, their phases, losses",
    "export": "the parameters of a checkpoint as one safetensors file",
    "plan": "what the job would do without some of its workers, as a picture",
    "doctor": "what this machine lacks for a job, and how to mend it",
    "bench": "measure what the README claims",
}

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def usage() -> str:
    """The text of `elaswave --help`: the commands that are installed, and how to go on."""
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items() if _installed(name))
    return f"""usage: elaswave COMMAND [ARGUMENTS]

Distributed training that survives kill -9: survivors keep going, in place, bit for bit.

commands:
{listed}

  elaswave COMMAND --help     what a command takes
  elaswave --version          the version

Several machines, or a scheduler of your own: use torchrun as it is, on each of them:

  torchrun --rdzv-backend=elaswave --rdzv-endpoint=HOST:PORT[,HOST:PORT] --nnodes=MIN:MAX \\
      --nproc-per-node=N --max-restarts=1000 -m elaswave.train --config CONFIG"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except ElasWaveError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
        return EXIT_FAILED
    return status


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else EXIT_USAGE
    if words[0] == "--version":
        print(f"elaswave {importlib.metadata.version('elaswave')}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS or not _installed(name):
        known = ", ".join(command for command in COMMANDS if _installed(command))
        return _fail(f"unknown command '{name}'; use one of {known}", EXIT_USAGE)
    return int(importlib.import_module(f"elaswave.cli.{name}").run(rest))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(f"elaswave.cli.{name}") is not None


def _fail(message: str, status: int) -> int:
    print(f"elaswave: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
