"""Where the output of replaced workers goes: a file of its own for every process, tailed as its predecessor's was."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.tail_log import TailLog

TERMINAL = ""
"""torch's word for "not redirected"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The three files of one process, as torch writes them: empty is the terminal, /dev/null is nowhere."""

    stdout: str
    stderr: str
    error_file: str


class WorkerLogs:
    """Keeps a process context's log files and tails in step with its processes.

    torch truncates a log file when it starts a process on it, which would lose what the predecessor wrote and
    confuse the thread that tails it; so process number n of a rank writes `stdout.r<n>.log`.
    """

    def __init__(self, context: SubprocessContext) -> None:
        self._context = context
        self._tails: list[TailLog] = []

    def for_restart(self, local_rank: int, count: int) -> Destination:
        """Files for the process that follows `count - 1` others on this rank."""
        context = self._context
        return Destination(
            stdout=_numbered(context.stdouts[local_rank], count),
            stderr=_numbered(context.stderrs[local_rank], count),
            error_file=_numbered(context.error_files[local_rank], count),
        )

    def for_spare(self, count: int) -> Destination:
        """Files for the n-th spare of this node, beside the folders of the ranks."""
        context = self._context
        error_file = context.error_files[0]
        if error_file == os.devnull:
            return Destination(
                stdout=_nowhere(context.stdouts), stderr=_nowhere(context.stderrs), error_file=error_file
            )
        folder = Path(error_file).parent.parent / f"spare{count}"
        folder.mkdir(exist_ok=True)
        return Destination(
            stdout=_like(context.stdouts, folder / "stdout.log"),
            stderr=_like(context.stderrs, folder / "stderr.log"),
            error_file=str(folder / "error.json"),
        )

    def switch(self, local_rank: int, to: Destination) -> None:
        """Book `to` as the files of this rank, and tail them if those before were tailed."""
        for paths, path in ((self._context.stdouts, to.stdout), (self._context.stderrs, to.stderr)):
            before, paths[local_rank] = paths[local_rank], path
            if before != path and before not in (TERMINAL, os.devnull):
                self._retail(local_rank, before, path)
        self._context.error_files[local_rank] = to.error_file

    def stop(self) -> None:
        """End the tails started here, after they have shown everything."""
        for tail in self._tails:
            tail.stop()

    def _retail(self, local_rank: int, before: str, path: str) -> None:
        for tail in [*_tails_of(self._context), *self._tails]:
            if tail._log_files.get(local_rank) != before:
                continue
            tail._finished_events[local_rank].set()
            successor = TailLog(
                tail._name,
                {local_rank: path},
                tail._dst,
                tail._log_line_prefixes,
                log_line_filter=getattr(tail, "_log_line_filter", lambda _: True),
            )
            if path != TERMINAL:
                self._tails.append(successor.start())
            if tail in self._tails:
                self._tails.remove(tail)
                tail.stop()


def _tails_of(context: SubprocessContext) -> list[TailLog]:
    """torch's own tails: one list, or before torch 2.11 one attribute per stream."""
    tails = getattr(context, "_tail_logs", None)
    if tails is None:
        tails = [getattr(context, "_stdout_tail", None), getattr(context, "_stderr_tail", None)]
    return [tail for tail in tails if tail is not None]


def _numbered(path: str, count: int) -> str:
    """`stdout.log` or `stdout.r1.log` -> `stdout.r2.log`."""
    if path in (TERMINAL, os.devnull):
        return path
    stem, _, suffix = os.path.basename(path).partition(".")
    suffix = suffix.rpartition(".")[2]
    return os.path.join(os.path.dirname(path), f"{stem}.r{count}.{suffix}")


def _nowhere(paths: dict[int, str]) -> str:
    return os.devnull if set(paths.values()) == {os.devnull} else TERMINAL


def _like(paths: dict[int, str], path: Path) -> str:
    """A file if any rank has one; a spare may take the place of any of them."""
    if set(paths.values()) - {TERMINAL, os.devnull}:
        return str(path)
    return _nowhere(paths)
