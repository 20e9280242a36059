"""Scenarios as TOML: what to do to whom, and when; read once, checked before anything starts."""

import json
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elaswave.errors import ConfigError
from elaswave.events import Phase, Stage


class What(StrEnum):
    """What is done to the victim."""

    KILL = "kill"  # SIGKILL
    STOP = "stop"  # SIGSTOP: hangs until the lease runs out
    ERROR = "error"  # an exception in the worker
    FLIP = "flip"  # one bit of what the worker holds in memory
    HOLD = "hold"  # stays where it is until `probe.let_go`: others can come, or be told to leave, meanwhile


class Target(StrEnum):
    """Where a bit is flipped."""

    SHARD = "shard"  # the worker's own part of the optimizer state
    COPY = "copy"  # a copy of a neighbour's part
    WEIGHTS = "weights"  # what it computes with


class Fault(BaseModel):
    """One thing that happens once.

    With a `phase` the victim does it to itself, at exactly that point; without one it is done from outside, as
    soon as the step before `step` has been committed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: What = What.KILL
    ranks: tuple[int, ...] = Field(min_length=1)
    step: int = Field(ge=1)
    phase: str | None = None
    nth: int = Field(default=1, ge=1)
    """Act when the phase is reached for this time in the step, as a worker computes several micro-batches."""
    spare_by: int | None = Field(default=None, ge=1)
    """Wait for a spare that can take the victim's place, but not beyond this step; only without a `phase`."""
    until: int | None = Field(default=None, ge=1)
    """Last step at which the victim does it to itself; without one, it does so however late it gets to the phase."""
    newcomer: bool = False
    """Only a worker that comes into a job under way, and has no step yet; only with a `phase` of a recovery."""
    target: Target = Target.SHARD
    """Of a flip: `shard`, `copy` or `weights`; the newest version that is there."""
    shard: int | None = Field(default=None, ge=0)
    """Of a flip in a copy: of which shard; any that is there when None."""
    seed: int = 0
    """Of a flip: decides which bit of which element of which tensor."""

    def own_point(self, rank: int, step: int, point: str, nth: int = 1, *, newcomer: bool = False) -> bool:
        """Whether the victim itself acts when `rank` reaches `point` of `step` for the `nth` time.

        Args:
            newcomer: it came when the job was under way; before its first recovery is complete it counts from step 1.
        """
        if self.phase != point or rank not in self.ranks or nth < self.nth:
            return False
        if self.newcomer:
            return newcomer and step == 1
        return self.step <= step and (self.until is None or step <= self.until)


class Scenario(BaseModel):
    """A list of faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: tuple[Fault, ...] = Field(min_length=1)


def load(path: str | Path) -> Scenario:
    """Read a scenario.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError("--faults", str(path), "no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("--faults", str(path), f"cannot be read as TOML: {error}") from error
    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{path}: {key}", problem["input"], problem["msg"]) from error
    for fault in scenario.fault:
        _check(path, fault)
    return scenario


def scenario_toml(faults: Iterable[Fault]) -> str:
    """Faults as TOML, for `load`; empty without any."""
    parts = []
    for fault in faults:
        values = fault.model_dump(mode="json", exclude_defaults=True)
        parts.append("\n".join(["[[fault]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]))
    return "\n\n".join(parts)


def _check(path: str | Path, fault: Fault) -> None:
    points = [str(point) for point in (*Stage, *Phase)]
    if fault.phase is not None and fault.phase not in points:
        raise ConfigError(f"{path}: fault.phase", fault.phase, "use one of " + ", ".join(points))
    if fault.what in (What.ERROR, What.HOLD) and fault.phase is None:
        told = f"what = '{fault.what}' happens inside a worker: name a phase"
        raise ConfigError(f"{path}: fault.phase", None, told)
    if fault.what is What.FLIP and fault.phase is None:
        raise ConfigError(f"{path}: fault.phase", None, "what = 'flip' happens inside a worker: name a phase")
    if fault.what is not What.FLIP and (only := {"target", "shard", "seed"} & fault.model_fields_set):
        raise ConfigError(f"{path}: fault.{min(only)}", getattr(fault, min(only)), "goes with what = 'flip'")
    if fault.nth > 1 and fault.phase is None:
        raise ConfigError(f"{path}: fault.nth", fault.nth, "counts how often a phase is reached: name a phase")
    if fault.shard is not None and fault.target is not Target.COPY:
        raise ConfigError(f"{path}: fault.shard", fault.shard, "goes with target = 'copy'")
    if fault.spare_by is not None and (fault.phase is not None or fault.spare_by < fault.step):
        raise ConfigError(f"{path}: fault.spare_by", fault.spare_by, "give a step not before `step`, and no phase")
    if fault.until is not None and (fault.phase is None or fault.until < fault.step):
        raise ConfigError(f"{path}: fault.until", fault.until, "give a step not before `step`, and a phase")
    if fault.newcomer and fault.phase not in list(Phase):
        told = "a newcomer is in its first recovery: name a phase of one"
        raise ConfigError(f"{path}: fault.phase", fault.phase, told)
