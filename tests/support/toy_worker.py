"""A worker that joins, reports what it sees, and leaves when told: all of a job but the training, and no torch.

Environment: TOY_EVENTS (a FIFO for JSON lines), TOY_STOP (the job is done once this file exists), TOY_FAIL (exit 1
at once), TOY_DIGEST (of the config).
"""

from elaswave.coordination import bootstrap

if __name__ == "__main__":
    bootstrap.start()

import json
import os
import select
import sys
from pathlib import Path
from typing import TextIO

from elaswave.clock import Deadline
from elaswave.coordination.agent import Agent
from elaswave.errors import ElasWaveError, Fenced, RefusedError
from elaswave.topology import View

LOOK_S = 0.02


def tell(event: str, **fields: object) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), "agent": os.environ.get("TOY_AGENT", ""), **fields}) + "\n"
    fd = os.open(os.environ["TOY_EVENTS"], os.O_WRONLY)
    try:
        os.write(fd, line.encode())  # one write below PIPE_BUF: lines of several processes do not mix
    finally:
        os.close(fd)


def say(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def tell_view(rank: int, view: View) -> None:
    tell("view", rank=rank, epoch=view.epoch, ranks=view.ranks(), paused=view.paused, reason=view.reason)


def work(agent: Agent, view: View) -> None:
    rank = agent.rank
    tell("joined", rank=rank, spare="ELASWAVE_SPARE" in os.environ, run_folder=os.environ.get("ELASWAVE_RUN_FOLDER"))
    say(sys.stdout, f"toy of rank {rank} with pid {os.getpid()} is in")
    tell_view(rank, view)
    agent.on_view = lambda new: tell_view(rank, new)
    stop = Path(os.environ["TOY_STOP"])
    while True:
        if select.select([agent.fileno()], [], [], LOOK_S)[0]:
            agent.on_readable()
        if agent.leaving:
            agent.depart()
            tell("departed", rank=rank)
            return
        if stop.exists():
            agent.finish()
            tell("finished", rank=rank)
            return


def main() -> int:
    tell("started", spare="ELASWAVE_SPARE" in os.environ)
    if os.environ.get("TOY_FAIL"):
        say(sys.stderr, "toy: this cannot work")
        return 1
    digest = os.environ.get("TOY_DIGEST", "toy")
    agent = Agent.connect(deadline=Deadline(30))
    tell("ready")
    try:
        work(agent, agent.join(address={}, config_digest=digest, versions={"toy": "1"}, deadline=Deadline(60)))
    except RefusedError as error:
        tell("refused", why=str(error))
        say(sys.stderr, f"toy: refused: {error}")
        return bootstrap.EXIT_REFUSED
    except Fenced as error:
        tell("fenced", why=str(error))
        return bootstrap.EXIT_FENCED
    except ElasWaveError as error:
        tell("error", why=f"{type(error).__name__}: {error}")
        say(sys.stderr, f"toy: {error}")
        return 1
    finally:
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
