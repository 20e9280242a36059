"""A worker without torch: joins, prints what it sees as JSON lines, and does what it is told on its standard input."""

import contextlib
import json
import os
import select
import sys
import time

from elaswave.clock import Deadline
from elaswave.coordination.agent import Agent
from elaswave.coordination.bootstrap import die_with_parent
from elaswave.errors import Dismissed, ElasWaveError, Fenced, RefusedError


def say(**fields):
    os.write(1, (json.dumps({"at": time.monotonic(), **fields}) + "\n").encode())


def run():
    """Serve until told to end; returns the exit code."""
    resident = os.environ.get("TEST_RESIDENT_BYTES")
    memory = b"x" * int(resident) if resident else b""
    agent = Agent.connect(deadline=Deadline(20))
    say(what="connected", worker_id=agent.worker_id, pid=os.getpid(), resident=len(memory))
    agent.on_view = lambda view: say(
        what="view",
        epoch=view.epoch,
        ranks=list(view.ranks()),
        ids=list(view.worker_ids()),
        reason=view.reason,
        paused=view.paused,
        finished=view.finished,
        departed=sorted(view.departed),
        term=view.term,
    )
    view = agent.join(
        address={"port": 1},
        config_digest=os.environ.get("TEST_CONFIG_DIGEST", "c0ffee"),
        versions={"torch": os.environ.get("TEST_TORCH", "2.13.0")},
        deadline=Deadline(float(os.environ.get("TEST_JOIN_S", "30"))),
    )
    say(what="joined", rank=agent.rank, epoch=view.epoch, worker_id=agent.worker_id)
    while True:
        ready, _, _ = select.select([agent.fileno(), 0], [], [], 30)
        if agent.fileno() in ready:
            agent.on_readable()
        if agent.leaving:
            agent.depart()
            agent.close()
            return 0
        if 0 in ready:
            command = os.read(0, 100).decode().split()
            if not command:
                return 3
            if command[0] == "finish":
                agent.finish()
                agent.close()
                return 0
            if command[0] == "suspect":
                agent.suspect(command[1], "the test says so")
            if command[0] == "hold_gil":
                say(what="holding")
                hold_gil(float(command[1]))
                say(what="released")


def hold_gil(duration_s):
    """Keep the interpreter lock for so long, in one C call."""
    import ctypes

    ctypes.PyDLL(None).usleep(int(duration_s * 1e6))


def main():
    die_with_parent()
    try:
        code = run()
    except Fenced as error:
        say(what="fenced", reason=str(error))
        code = 66
    except RefusedError as error:
        say(what="refused", reason=str(error))
        code = 65
    except Dismissed as error:
        say(what="dismissed", reason=str(error))
        code = 0
    except ElasWaveError as error:
        say(what="error", kind=type(error).__name__, reason=str(error))
        code = 1
    with contextlib.suppress(OSError):
        say(what="exit", code=code)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
