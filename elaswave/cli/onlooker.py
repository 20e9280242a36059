"""Watches a run that `elaswave launch` has started: shows its progress, and carries out the faults from outside."""

import os
import sys
from pathlib import Path

from elaswave.config import Config
from elaswave.events import Recorder
from elaswave.faults import scenario
from elaswave.faults.nemesis import Nemesis
from elaswave.telemetry.console import Console
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.jsonl import JsonlSink


class Onlooker:
    """Reads the run's events while it goes on.

    Args:
        folder: of the run.
        faults: scenario file, or None.
    """

    def __init__(self, config: Config, folder: Path, faults: str | None) -> None:
        self._follower = Follower(folder)
        self._console = Console(self._follower, sys.stdout, config.training.steps) if config.run.progress else None
        self._recorder = Recorder((JsonlSink(folder, node_id="nemesis"),), {"pid": os.getpid()})
        self._nemesis = None if faults is None else Nemesis(scenario.load(faults), folder, self._recorder)

    def tick(self) -> None:
        """Take in what is new; to be called a few times a second."""
        try:
            events = self._console.tick() if self._console is not None else self._follower.poll()
        except OSError:  # nobody reads our output any more: the job goes on unseen
            self._console, events = None, self._follower.poll()
        if self._nemesis is not None:
            self._nemesis.observe(events)

    def finish(self, *, table: bool = True) -> None:
        """Show the summary, with the table of recoveries if wanted; the run is over."""
        self._recorder.close()
        if self._console is not None:
            try:
                self._console.finish(table=table)
            except OSError:
                return
