"""The outside half of a scenario: watches a run's events and signals its workers, as an unkind host would."""

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elaswave.events import Kind, Recorder
from elaswave.faults.claims import claim
from elaswave.faults.scenario import Fault, Scenario, What

_SIGNALS = {What.KILL: signal.SIGKILL, What.STOP: signal.SIGSTOP}


class Nemesis:
    """Carries out the faults of a scenario that name no phase.

    Args:
        scenario: what to do.
        run_folder: where claims are kept, so that a fault happens once.
        recorder: takes the FAULT event, written before the signal is sent.
    """

    def __init__(self, scenario: Scenario, run_folder: Path, recorder: Recorder) -> None:
        self._faults = [(n, fault) for n, fault in enumerate(scenario.fault) if fault.phase is None]
        self._run_folder = run_folder
        self._recorder = recorder
        self._pids: dict[int, int] = {}
        self._step = 0
        self._spare_ready = False

    def observe(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in new events of the run and act on what is due."""
        for event in events:
            if event.get("kind") == Kind.JOINED:
                self._pids[int(event["rank"])] = int(event["pid"])
            elif event.get("kind") == Kind.STEP_COMMITTED:
                self._step = max(self._step, int(event["step"]))
            elif event.get("kind") == Kind.SPARE:
                self._spare_ready = event.get("what") == "ready"
        for item in [item for item in self._faults if self._due(item[1])]:
            if all(rank in self._pids for rank in item[1].ranks):
                self._faults.remove(item)
                self._strike(*item)

    def _due(self, fault: Fault) -> bool:
        waits = fault.spare_by is not None and not self._spare_ready and self._step < fault.spare_by - 1
        return self._step >= fault.step - 1 and not waits

    def _strike(self, number: int, fault: Fault) -> None:
        for rank in fault.ranks:
            if not claim(self._run_folder, number, rank):
                continue
            pid = self._pids[rank]
            self._recorder.emit(
                Kind.FAULT, what=str(fault.what), target_rank=rank, target_pid=pid, step=self._step + 1, phase=None
            )
            try:
                os.kill(pid, _SIGNALS[fault.what])
            except ProcessLookupError:
                continue
