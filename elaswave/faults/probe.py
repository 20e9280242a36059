"""The worker's half of a scenario: hurt this very process at an exact point of a step or a recovery."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from elaswave.clock import Deadline
from elaswave.events import Kind, Recorder
from elaswave.faults import flip
from elaswave.faults.claims import claim
from elaswave.faults.scenario import Fault, Scenario, What
from elaswave.runtime.job import Job, Probe
from elaswave.runtime.marker import began

HOLD_TIMEOUT_S = 60.0
LOOK_S = 0.01


def make_probe(scenario: Scenario, run_folder: Path, rank: Callable[[], int], recorder: Recorder) -> Probe:
    """Return a function to be called with (step, point, job) at every point that a fault may name.

    Each fault strikes each of its ranks once in the life of the run, whatever process holds the rank: claims are
    files, so that a replacement that repeats the step is spared.
    """
    pending = list(enumerate(scenario.fault))
    reached: Counter[tuple[int, str]] = Counter()
    newcomer = began(run_folder)

    def probe(step: int, point: str, job: Job) -> None:
        reached[step, point] += 1
        for number, fault in pending:
            if not fault.own_point(rank(), step, point, reached[step, point], newcomer=newcomer):
                continue
            bit = flip.choose(job, fault, f"{number} {rank()}") if fault.what is What.FLIP else None
            if (fault.what is not What.FLIP or bit) and claim(run_folder, number, rank()):
                strike(number, fault, step, point, bit)

    def strike(number: int, fault: Fault, step: int, point: str, bit: flip.Flip | None) -> None:
        recorder.emit(
            Kind.FAULT,
            what=str(fault.what),
            target_rank=rank(),
            target_pid=os.getpid(),
            step=step,
            phase=point,
            **({"target": str(fault.target), "seed": fault.seed, **bit.fields()} if bit else {}),
        )
        if bit is not None:
            bit.do()
        elif fault.what is What.ERROR:
            raise RuntimeError(f"injected at {point} of step {step}")
        elif fault.what is What.HOLD:
            _wait_for(_permit(run_folder, number))
        else:
            os.kill(os.getpid(), signal.SIGKILL if fault.what is What.KILL else signal.SIGSTOP)

    return probe


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
