"""Run folders: which one is meant, what happened in it, and the report written beside its events.

runs/<utc>-<name>/{config.json, events/*.jsonl, report.json, report.html, trace.json}
runs/latest -> the newest
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elaswave.errors import ConfigError
from elaswave.report.facts import History
from elaswave.report.history import history_build
from elaswave.report.html import page
from elaswave.report.summary import Report, as_json, report_build
from elaswave.report.trace import trace
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.jsonl import EVENTS_FOLDER

CONFIG_FILE = "config.json"


def find_run(name: str | Path, parent: str | Path = "runs") -> Path:
    """The run folder that a path, or a name inside `parent` such as `latest`, stands for.

    Raises:
        ConfigError: there is no such run.
    """
    for folder in (Path(name), Path(parent) / name):
        if (folder / EVENTS_FOLDER).is_dir():
            return folder
    raise ConfigError("run", str(name), f"no run folder with an {EVENTS_FOLDER} folder here or in {parent}/")


def read_config(run_folder: Path) -> Mapping[str, Any]:
    """The settings of a run, empty when they were not written or cannot be read."""
    try:
        values = json.loads((run_folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_config(run_folder: str | Path, config: Mapping[str, Any]) -> None:
    """Put the settings of a run into its folder, as plain values."""
    Path(run_folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(run_folder) / CONFIG_FILE, json.dumps(config, indent=1) + "\n")


def read_history(run_folder: str | Path) -> History:
    """Everything a run has told so far; torn and foreign lines are left out."""
    folder = Path(run_folder)
    return history_build(Follower(folder).drain(), read_config(folder))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new, never half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_report(run_folder: str | Path, reference: str | Path | None = None) -> Report:
    """Write report.json, report.html and trace.json into a run's folder.

    Args:
        run_folder: of the run.
        reference: folder of an unharmed run of the same config, to be compared bit for bit.
    """
    folder = Path(run_folder)
    report = report_build(read_history(folder), None if reference is None else read_history(reference))
    write_atomically(folder / "report.json", json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "trace.json", json.dumps(trace(report.history)) + "\n")
    write_atomically(folder / "report.html", page(report))
    return report
