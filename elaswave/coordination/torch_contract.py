"""What the launcher relies on inside torch: names and signatures that are not promised by anybody, in one list.

`problems()` compares the list with the installed torch. Whatever it finds, the job can still run: torchrun's own
agent is then left as it is, and every worker gets a supervisor of ours instead (`supervise.py`).
"""

import importlib
import inspect
import os
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

MINIMUM_TORCH = (2, 6)
"""First release whose torchrun loads rendezvous handlers from entry points and has all names below."""

FORCE_SUPERVISE = "ELASWAVE_FORCE_SUPERVISE"
"""Set to 1 to use supervisors although the agent could be replaced."""

_LAUNCHER = "torch.distributed.launcher.api"
_AGENT = "torch.distributed.elastic.agent.server.local_elastic_agent"
_SERVER = "torch.distributed.elastic.agent.server.api"
_PROCESSES = "torch.distributed.elastic.multiprocessing.api"
_HANDLERS = "torch.distributed.elastic.multiprocessing.subprocess_handler"
_TAIL = "torch.distributed.elastic.multiprocessing.tail_log"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that must be there.

    Attributes:
        module: where it lives.
        path: attribute path inside the module.
        parameters: names its signature must have; extra ones are welcome.
        source: names that must occur in its code, such as attributes it sets on `self`.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


REQUIREMENTS = (
    # launch_agent() builds the handler, whose creator puts our agent class in place, before it looks the class up
    Requirement(_LAUNCHER, "LocalElasticAgent"),
    Requirement(_LAUNCHER, "launch_agent", source=("get_rendezvous_handler", "LocalElasticAgent")),
    # overridden or called in local_agent.py
    Requirement(_AGENT, "LocalElasticAgent._start_workers", ("worker_group",), ("_pcontext",)),
    Requirement(_AGENT, "LocalElasticAgent._monitor_workers", ("worker_group",), ("pids", "workers", "id")),
    Requirement(_SERVER, "SimpleElasticAgent._invoke_run", ("role",), ("_monitor_workers", "_exit_barrier")),
    Requirement(_SERVER, "SimpleElasticAgent.__init__", ("spec",), ("_remaining_restarts", "_worker_group")),
    Requirement(_SERVER, "SimpleElasticAgent._exit_barrier", source=("_store",)),
    Requirement(_SERVER, "RunResult", ("state", "return_values", "failures")),
    Requirement(_SERVER, "WorkerState.SUCCEEDED"),
    Requirement(_PROCESSES, "PContext.__init__", source=("reify", "entrypoint", "args", "envs", "stdouts", "stderrs")),
    Requirement(_PROCESSES, "PContext.close", ("death_sig", "timeout"), ("_close",)),
    Requirement(_PROCESSES, "SubprocessContext.__init__", source=("_running_local_ranks", "_failures")),
    Requirement(_PROCESSES, "SubprocessContext._start", source=("subprocess_handlers", "get_subprocess_handler")),
    Requirement(_PROCESSES, "SubprocessContext._poll"),
    Requirement(_PROCESSES, "SubprocessContext._close", ("death_sig", "timeout"), ("subprocess_handlers",)),
    Requirement(_PROCESSES, "SubprocessContext.pids", source=("subprocess_handlers",)),
    Requirement(_PROCESSES, "RunProcsResult", ("return_values", "failures", "stdouts", "stderrs")),
    Requirement(_PROCESSES, "ProcessFailure", ("local_rank", "pid", "exitcode", "error_file")),
    Requirement(
        _HANDLERS, "get_subprocess_handler", ("entrypoint", "args", "env", "stdout", "stderr", "local_rank_id")
    ),
    Requirement(_HANDLERS, "SubprocessHandler.__init__", source=("_stdout", "_stderr", "local_rank_id", "proc")),
    Requirement(_HANDLERS, "SubprocessHandler.close", ("death_sig",)),
    Requirement(_TAIL, "TailLog", ("name", "log_files", "dst", "log_line_prefixes")),
    Requirement(
        _TAIL, "TailLog.__init__", source=("_name", "_log_files", "_dst", "_log_line_prefixes", "_finished_events")
    ),
)


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def too_old() -> str | None:
    """A message when this torch cannot work at all, else None."""
    if torch_version() >= MINIMUM_TORCH:
        return None
    wanted = ".".join(map(str, MINIMUM_TORCH))
    return f"torch {torch.__version__} is too old for --rdzv-backend=elaswave; install torch {wanted} or newer"


def problems(requirements: tuple[Requirement, ...] = REQUIREMENTS) -> list[str]:
    """What the installed torch lacks, one line each; empty when the agent can be replaced."""
    if os.environ.get(FORCE_SUPERVISE) == "1":
        return [f"{FORCE_SUPERVISE}=1"]
    return [line for requirement in requirements if (line := _check(requirement))]


def _check(requirement: Requirement) -> str | None:
    where = f"torch {torch.__version__}: {requirement.module}.{requirement.path}"
    try:
        found: Any = importlib.import_module(requirement.module)
        for part in requirement.path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return f"{where} is gone"
    if requirement.parameters:
        has = inspect.signature(found).parameters
        missing = [name for name in requirement.parameters if name not in has]
        if missing:
            return f"{where} no longer takes {', '.join(missing)}"
    names = _names_used(found) if requirement.source else set()
    missing = [name for name in requirement.source if name not in names]
    if missing:
        return f"{where} no longer uses {', '.join(missing)}"
    return None


def _names_used(function: Any) -> set[str]:
    """Global names, attributes and locals that occur in a function's code, comprehensions included."""
    names: set[str] = set()
    codes = [inspect.unwrap(function).__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names, code.co_varnames)
        codes.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))
    return names
