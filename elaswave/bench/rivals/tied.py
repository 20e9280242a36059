"""Runs a module so that it ends with the process that started it, and its own children with it.

`python -m elaswave.bench.rivals.tied MODULE ARGUMENTS...`. The children of MODULE call `bootstrap.die_with_parent`,
which learns here who their parent is, so that not even one that starts just then is left behind.
"""

import os
import runpy
import sys

from elaswave.coordination import bootstrap


def main() -> None:
    bootstrap.die_with_parent()
    os.environ[bootstrap.PARENT_PID] = str(os.getpid())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
