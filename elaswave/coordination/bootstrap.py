"""The first thing a worker does, before torch is imported: tie its life to its agent's, and find its parent.

`python -m elaswave.coordination.bootstrap MODULE ARGS...` runs any module that way. When torchrun's agent could not
be replaced, the process that torchrun started turns into a supervisor here, and its child is the worker.
"""

import ctypes
import os
import runpy
import signal
import sys

EXIT_REFUSED = 65
"""Turned away, or an error of the whole job: starting the worker again would not help."""
EXIT_FENCED = 66
"""No longer a member; a fresh worker may join in its stead."""
EXIT_ORPHAN = 67
"""The parent was gone before its death could be noticed."""

PARENT_PID = "ELASWAVE_PARENT_PID"
SUPERVISE = "ELASWAVE_SUPERVISE"
SUPERVISED = "ELASWAVE_SUPERVISED"

_PR_SET_PDEATHSIG = 1


def start() -> None:
    """Make this process die with its parent; call it before importing torch, in the main thread.

    Returns in the worker. Does not return in a process that becomes a supervisor. Calling it again does nothing.
    """
    die_with_parent()
    if os.environ.get(SUPERVISE) == "1" and os.environ.get(SUPERVISED) != "1":
        from elaswave.coordination import supervise

        sys.exit(supervise.run([sys.executable, *sys.orig_argv[1:]]))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Exits with 67 when that has already happened: the notice is only sent for deaths that come after the request.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = os.environ.get(PARENT_PID)
    if parent and parent.isdigit() and os.getppid() != int(parent):
        os._exit(EXIT_ORPHAN)


def main() -> None:
    """Run the module named on the command line as `python -m` would, tied to the parent's life."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m elaswave.coordination.bootstrap MODULE [ARGUMENTS]")
    start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
