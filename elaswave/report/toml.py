"""Settings and faults of a run as TOML, to run it again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from elaswave.report.facts import Fault


def config_toml(config: Mapping[str, Any]) -> str:
    """Settings as TOML: one table per section."""
    parts = []
    for section, values in config.items():
        if isinstance(values, Mapping):
            lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
            parts.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


def faults_toml(faults: Sequence[Fault]) -> str:
    """The faults of a run as a scenario: those done together in one entry."""
    groups: dict[tuple[str, int | None, str | None, tuple[tuple[str, str | int], ...]], list[int]] = {}
    for fault in faults:
        if fault.rank is not None:
            groups.setdefault((fault.what, fault.step, fault.phase, tuple(fault.flip.items())), []).append(fault.rank)
    parts = []
    for (what, step, phase, flip), ranks in groups.items():
        lines = ["[[fault]]", f"what = {_toml(what)}", f"ranks = {_toml(sorted(set(ranks)))}", f"step = {step or 1}"]
        lines += [f"phase = {_toml(phase)}"] if phase else []
        parts.append("\n".join(lines + [f"{key} = {_toml(value)}" for key, value in flip]))
    return "\n\n".join(parts) + "\n"


def _toml(value: object) -> str:
    """A TOML value; JSON's strings, numbers, lists and booleans are TOML's too."""
    return (
        json.dumps(value)
        if not isinstance(value, str)
        else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    )
