"""The worker's half of a scenario: hurt this very process at an exact point of a step or a recovery."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from elaswave.clock import Deadline
from elaswave.events import Kind, Recorder
from elaswave.faults.scenario import Fault, Scenario, What
from elaswave.runtime.marker import began

Probe = Callable[[int, str], None]
HOLD_TIMEOUT_S = 60.0
LOOK_S = 0.01


def make_probe(scenario: Scenario, run_folder: Path, rank: Callable[[], int], recorder: Recorder) -> Probe:
    """Return a function to be called with (step, point) at every point that a fault may name.

    Each fault strikes each of its ranks once in the life of the run, whatever process holds the rank: claims are
    files, so that a replacement that repeats the step is spared.
    """
    pending = list(enumerate(scenario.fault))
    newcomer = began(run_folder)
    passed: dict[tuple[int, int], int] = {}

    def probe(step: int, point: str) -> None:
        for number, fault in pending:
            if not fault.own_point(rank(), step, point, newcomer=newcomer):
                continue
            passed[number, step] = passed.get((number, step), 0) + 1
            if passed[number, step] > fault.passes and claim(run_folder, number, rank()):
                strike(number, fault, step, point)

    def strike(number: int, fault: Fault, step: int, point: str) -> None:
        recorder.emit(
            Kind.FAULT, what=str(fault.what), target_rank=rank(), target_pid=os.getpid(), step=step, phase=point
        )
        if fault.what is What.ERROR:
            raise RuntimeError(f"injected at {point} of step {step}")
        if fault.what is What.HOLD:
            _wait_for(_permit(run_folder, number))
            return
        os.kill(os.getpid(), signal.SIGKILL if fault.what is What.KILL else signal.SIGSTOP)

    return probe


def claim(run_folder: Path, number: int, rank: int) -> bool:
    """True for the first caller of the run, false for every other."""
    folder = run_folder / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / f"{number}-rank-{rank}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def let_go(run_folder: Path, number: int) -> None:
    """Let a worker go on that fault `number` of the scenario holds, or will hold.

    Args:
        run_folder: of the run.
        number: position of the fault in its scenario.
    """
    path = _permit(run_folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _permit(run_folder: Path, number: int) -> Path:
    return run_folder / "faults" / f"{number}-go"


def _wait_for(path: Path) -> None:
    deadline = Deadline(HOLD_TIMEOUT_S)
    while not path.exists() and not deadline.passed():
        time.sleep(LOOK_S)
