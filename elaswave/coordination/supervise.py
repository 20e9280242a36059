"""The fallback when torchrun's agent cannot be replaced: a thin parent per worker that starts it again when it dies.

`torchrun ... -m elaswave.coordination.supervise script.py ARGS` (or `-m module ARGS`). Uses nothing of torch, so the
parent costs a bare interpreter. The agent sees the supervisor as its worker and never learns of a death.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from elaswave.clock import SYSTEM
from elaswave.coordination import bootstrap
from elaswave.coordination.restart import Action, Death, History, Limits, decide, describe_exit

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Supervisor:
    """Runs one command until it succeeds, is refused, or is given up.

    Args:
        command: the worker's whole command line.
        limits: how often and how fast it is started again.
    """

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self._command = list(command)
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._stop_signal: int | None = None

    def run(self) -> int:
        """Exit status of the last worker; a signal is 128 plus its number."""
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        history = History()
        while True:
            exit_code, lived_s = self._run_once(history.restarts)
            if self._stop_signal is not None:
                return _status(exit_code)
            death = Death(exit_code=exit_code, lived_s=lived_s, joined=lived_s >= self._limits.young_s)
            verdict = decide(death, history, self._limits)
            history = verdict.history
            if verdict.action is not Action.RESTART:
                if verdict.action is Action.GIVE_UP:
                    _say(f"worker ended ({describe_exit(exit_code)}) and is not started again: {verdict.why}")
                return _status(exit_code)
            _say(f"worker died ({describe_exit(exit_code)}); starting another in {verdict.delay_s:.1f} s")
            self._pause(verdict.delay_s)
            if self._stop_signal is not None:
                return _status(exit_code)

    def _run_once(self, restarts: int) -> tuple[int, float]:
        born = SYSTEM.monotonic()
        environment = {
            **os.environ,
            bootstrap.SUPERVISED: "1",
            bootstrap.PARENT_PID: str(os.getpid()),
            "ELASWAVE_WORKER_ID": secrets.token_hex(6),
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
        }
        self._child = subprocess.Popen(self._command, env=environment, start_new_session=True)
        if self._stop_signal is not None:  # it arrived while there was no child to forward it to
            self._kill_group(self._stop_signal)
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        self._kill_group(signal.SIGKILL)  # what the worker left behind; not yet reaped, so the id is still its own
        exit_code, self._child = self._child.wait(), None
        return exit_code, SYSTEM.monotonic() - born

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPPING:
            self._stop_signal = number
        self._kill_group(number)

    def _kill_group(self, number: int) -> None:
        if self._child is None:
            return
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return

    def _pause(self, delay_s: float) -> None:
        end = SYSTEM.monotonic() + delay_s
        while self._stop_signal is None and (left := end - SYSTEM.monotonic()) > 0:
            time.sleep(min(left, 0.2))


def run(command: Sequence[str]) -> int:
    """Supervise one command with the restart budget that torchrun announces to its workers."""
    return Supervisor(command, Limits(max_restarts=int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")))).run()


def main() -> int:
    """Supervise `python -u ARGS`, where ARGS are those of this module."""
    if len(sys.argv) < 2:
        _say("usage: torchrun ... -m elaswave.coordination.supervise SCRIPT | -m MODULE  [ARGUMENTS]")
        return 2
    bootstrap.die_with_parent()
    return run([sys.executable, "-u", *sys.argv[1:]])


def _status(exit_code: int) -> int:
    return exit_code if exit_code >= 0 else 128 - exit_code


def _say(message: str) -> None:
    sys.stderr.write(f"elaswave: rank {os.environ.get('RANK', '?')}: {message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
