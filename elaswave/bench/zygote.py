"""A process that has imported torch, and forks trained workers on request: starting one takes milliseconds.

Commands are JSON lines on standard input, `{"env": {...}, "argv": [...]}`; answers are JSON lines on standard output,
`{"started": pid}` and `{"ended": pid, "status": exit code or -signal}`.
"""

import ctypes
import json
import os
import select
import signal
import sys
import traceback

PR_SET_PDEATHSIG = 1


def say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def child(order: dict) -> int:
    """What a forked worker does; returns its exit status."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(order["env"], ELASWAVE_PARENT_PID=str(os.getppid()))
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(0)
    try:
        from elaswave import train

        return train.main(order["argv"])
    except BaseException:
        traceback.print_exc()
        return 1


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say(ended=pid, status=os.waitstatus_to_exitcode(status))


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch

    torch.set_num_threads(1)
    from elaswave import trainer  # noqa: F401
    from elaswave.zero.schema import warm_up

    warm_up()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    say(ready=os.getpid())
    buffer = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os._exit(child(order))
                say(started=pid)


if __name__ == "__main__":
    sys.exit(main())
