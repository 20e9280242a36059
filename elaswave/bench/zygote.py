"""A process that has imported torch, and forks workers on request: starting one takes milliseconds.

Commands are JSON lines on standard input, `{"module": name, "argv": [...], "env": {...}, "log": path}`; answers are
JSON lines on standard output, `{"ready": pid}`, `{"started": pid}` and `{"ended": pid, "status": exit code or
-signal}`. A worker that gets SIGUSR1 writes what its threads are doing into its log.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

READY_TIMEOUT_S = 120.0
FORK_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_PR_SET_PDEATHSIG = 1


class Zygote:
    """The warm process.

    Args:
        environment: that workers get, on top of this process's.
        modules: that it imports besides torch and the trainer, where they are installed.

    Attributes:
        ended: (pid, exit code or -signal) of each worker that has ended.
    """

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self._answers: queue.Queue[int] = queue.Queue()
        self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="zygote", daemon=True)
        self._reader.start()
        self._answers.get(timeout=READY_TIMEOUT_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ended" in message:
                self.ended.put((message["ended"], message["status"]))
            else:
                self._answers.put(message.get("started") or message["ready"])

    def fork(self, module: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Start a worker; returns its pid.

        Args:
            module: whose `main(argv)` it runs, and whose result is its exit status.
            argv: words of a command line.
            env: on top of the process's environment.
            log: what it prints is added to this file.

        Raises:
            queue.Empty: it was not started in time.
        """
        assert self._process.stdin is not None
        order = {"module": module, "argv": list(argv), "env": dict(env), "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._answers.get(timeout=FORK_TIMEOUT_S)

    def close(self) -> None:
        """Workers die with the process."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)
        self._reader.join(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _child(order: Mapping[str, Any]) -> int:
    """What a forked worker does; returns its exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(order["env"], ELASWAVE_PARENT_PID=str(os.getppid()))
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(0)
    faulthandler.register(signal.SIGUSR1)
    try:
        return importlib.import_module(order["module"]).main(order["argv"])
    except BaseException:
        traceback.print_exc()
        return 1


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say(ended=pid, status=os.waitstatus_to_exitcode(status))


def _fork(order: Mapping[str, Any]) -> None:
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os._exit(_child(order))
    _say(started=pid)


def _warm_up(modules: Sequence[str]) -> None:
    """Import what workers need, once for all of them, without starting a thread."""
    import torch

    torch.set_num_threads(1)
    from elaswave import trainer  # noqa: F401
    from elaswave.zero.schema import warm_up

    warm_up()
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)


def main() -> None:
    """Serve until standard input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _warm_up(sys.argv[1:])
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _say(ready=os.getpid())
    rest = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            _reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _fork(json.loads(line))


if __name__ == "__main__":
    main()
