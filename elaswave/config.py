"""One typed tree of settings: TOML in, `--section.key` overrides on top, checked once before anything starts."""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elaswave.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Share = Annotated[float, Field(ge=0, lt=1)]

FILE_SOURCES = ("text", "tokens")
"""Data that is read from `data.path`."""
SOURCES = ("digits", "masked", "stdlib", *FILE_SOURCES)
"""Data that is known by name."""


class Numerics(StrEnum):
    """How gradients are summed. `exact`: int64 fixed point, the same bits on any number of workers."""

    EXACT = "exact"
    FAST = "fast"


class Precision(StrEnum):
    """What forward and backward compute in. Weights, sums and optimizer state are float32 or better in both."""

    FP32 = "fp32"
    BF16 = "bf16"


class Schedule(StrEnum):
    """In which order a pipeline's workers do forward and backward.

    `gpipe`: all forwards first (https://arxiv.org/abs/1811.06965). `1f1b`: in turns, so that few activations are held
    (https://arxiv.org/abs/2104.04473). `1f1b-split`: as 1f1b, but gradients of weights wait for idle time
    (https://arxiv.org/abs/2401.10241).
    """

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    SPLIT = "1f1b-split"


class ZeroLayout(StrEnum):
    """How optimizer state is cut: every layer D ways, or one flat buffer D ways."""

    INTERLEAVED = "interleaved"
    CONTIGUOUS = "contiguous"


class Transport(StrEnum):
    """How bulk data travels between workers. `auto`: shared memory on one host, TCP across hosts."""

    AUTO = "auto"
    SHM = "shm"
    TCP = "tcp"


class SnapshotMode(StrEnum):
    """How a neighbour keeps its copy: shipped state, or shipped gradient and the same optimizer step replayed."""

    STATE = "state"
    GRADIENT = "gradient"


class DvfsBackend(StrEnum):
    """Who sets the clocks of devices. `simulated` sets none, and stands for a device that obeys."""

    OFF = "off"
    SIMULATED = "simulated"
    NVML = "nvml"
    CPUFREQ = "cpufreq"


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Section):
    """The network that is trained."""

    name: str = "gpt"
    """`gpt`, `encoder` (restores masked tokens), `mixer` (tells classes of images) or `package.module:Class`."""
    layers: PositiveInt = 4
    """Number of blocks."""
    width: PositiveInt = 128
    """Width of the residual stream; a multiple of heads."""
    heads: PositiveInt = 4
    """Attention heads per block."""
    sequence_length: PositiveInt = 128
    """Tokens, or pixels, per sample."""
    vocabulary: Annotated[int, Field(ge=256)] = 256
    """Number of token ids or grey values; bytes need 256."""
    dropout: Share = 0.1
    """Probability of zeroing an activation."""
    tied: bool = False
    """`gpt`: the output shares its matrix with the token embedding, as it always does in `encoder`."""
    patch: PositiveInt = 2
    """`mixer`: side of a patch in pixels."""
    classes: PositiveInt = 10
    """`mixer`: number of classes."""


class Data(Section):
    """Where samples come from."""

    source: str = "stdlib"
    """`stdlib` (Python's own source text), `text` (files), `tokens` (a .bin memory map of uint16 ids), `masked` (stdlib
    with tokens to restore), `digits` (scikit-learn's images), or `package.module:Class` that takes a Config."""
    path: str = ""
    """File or folder for `text` and `tokens`."""


class Training(Section):
    """How long and how much."""

    steps: PositiveInt = 100
    """Optimizer steps of the whole run."""
    train_batch_size: PositiveInt = 16
    """Samples per step over the whole job; no event changes it."""
    micro_batch_size: PositiveInt = 2
    """Samples computed together; the unit of work that is shared out, its shape never changes."""
    seed: int = 7
    """Seed of initialisation, data order and dropout."""
    numerics: Numerics = Numerics.EXACT
    """`exact` or `fast`; part of the run's identity."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Precision = Precision.FP32
    """`fp32` or `bf16`; part of the run's identity."""
    activation_checkpointing: bool = False
    """Keep only the inputs of layers, and compute the rest of their activations again in the backward."""
    threads: PositiveInt = 1
    """Torch threads per worker; fixed, since their number changes bits."""


class Optimizer(Section):
    """The update rule and its schedule."""

    name: str = "adamw"
    """`adamw`, or `module:Class` of any elementwise torch.optim.Optimizer."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate."""
    min_lr: Annotated[float, Field(ge=0)] = 3e-4
    """Learning rate at the end of the cosine."""
    warmup_steps: Count = 5
    """Steps of linear warm-up."""
    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of matrices; vectors are not decayed."""


class Parallelism(Section):
    """How layers, micro-batches and state are cut over workers."""

    stages: PositiveInt = 1
    """Pipeline stages P; the worker of rank r computes stage r % P. Workers of one stage share its micro-batches."""
    virtual_stages: PositiveInt = 1
    """Pieces V that a stage's layers lie in: of P * V chunks in order, chunk c is computed by stage c % P."""
    schedule: Schedule = Schedule.ONE_F_ONE_B
    """`gpipe`, `1f1b` or `1f1b-split`."""
    fluid: bool = False
    """Cut layers differently per replica and micro-batch, so that all end together whatever one has lost; layers at
    a boundary are held twice."""
    zero_layout: ZeroLayout = ZeroLayout.INTERLEAVED
    """`interleaved` or `contiguous`."""


class Elasticity(Section):
    """How the job reacts to workers that come and go. Timeouts are ordered: heartbeat < suspicion < collective."""

    min_workers: PositiveInt = 1
    """Fewer live workers pause the job."""
    wait_for_workers_s: Seconds = 120.0
    """How long a paused or starting job waits for workers before it gives up."""
    heartbeat_s: Seconds = 0.2
    """Interval of heartbeats."""
    suspicion_s: Seconds = 2.0
    """Silence after which a worker or node is taken for dead (the lease)."""
    collective_timeout_s: Seconds = 60.0
    """Longest wait inside one communication."""
    start_timeout_s: Seconds = 300.0
    """Longest time from the start of a worker's process to its first hello."""
    leave_timeout_s: Seconds = 20.0
    """How long a planned leave may take before the worker is killed."""
    background_migration: bool = True
    """Let optimizer state travel into a new layout behind the training; false waits for it before the job goes on."""
    spares: Count = 1
    """Warm spare processes per node: imported and waiting, in the job within a fraction of a second."""
    transport: Transport = Transport.AUTO
    """`auto`, `shm` or `tcp`."""
    bind: str = "127.0.0.1"
    """Address that this node listens on; loopback unless told otherwise."""


class Snapshot(Section):
    """Per-step copies of the optimizer shards in other failure domains."""

    copies: Count = 2
    """Neighbours that hold a copy of each shard: as many members may die at once without loss."""
    mode: SnapshotMode = SnapshotMode.STATE
    """`state` or `gradient`."""
    verify: bool = True
    """Compare digests of the state with what was announced: in every step, and before a recovered job resumes."""
    verify_weights: bool = True
    """Compare, in every step, digests of the weights that it was computed with; costs a pass over them."""
    scrub_steps: Count = 8
    """Every so many steps holders compare their copies with what the owners announced; 0 never does."""


class Checkpoint(Section):
    """Copies of the whole state on disk."""

    every_steps: Count = 0
    """Steps between checkpoints, and one after the last step; 0 writes none."""
    keep: PositiveInt = 2
    """How many to keep."""
    folder: str = ""
    """Where; on shared storage when the job spans hosts. `checkpoints` in the run folder when empty."""
    resume: str = ""
    """A checkpoint to start from, or a run folder whose newest is taken; any number of workers may have written it."""


class Dvfs(Section):
    """Clocks, chosen with every plan: whoever binds is raised, whoever waits is lowered. They never change bits.

    At clock f = x * nominal, work of t seconds takes t * (1 - compute_share + compute_share / x), and a device that
    computes takes static_w + dynamic_w * x * v(x)**2, where the voltage v falls linearly from 1 at the nominal clock to
    knee_voltage at x = knee, and stays there below.
    """

    backend: DvfsBackend = DvfsBackend.OFF
    """`off`, `simulated`, `nvml` or `cpufreq`."""
    nominal_mhz: Count = 0
    """The clock that everything below refers to; 0 for the one the device runs at by itself (simulated: 1000)."""
    min_mhz: Count = 0
    """Lowest clock to set; 0 for the device's own (simulated: half of the nominal one)."""
    max_mhz: Count = 0
    """Highest clock to set; 0 for the device's own (simulated: 1.2 times the nominal one)."""
    boost: Annotated[float, Field(ge=1, le=2)] = 1.1
    """How far above the nominal clock whoever binds may go, as a factor; 1 never raises."""
    tolerance: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """How much longer a step may take, as a share, so that more of those that wait can be lowered."""
    compute_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the time at the nominal clock that shrinks as the clock rises; the rest waits for memory."""
    static_w: Annotated[float, Field(ge=0)] = 100.0
    """Power that is drawn at any clock, also while waiting."""
    dynamic_w: Annotated[float, Field(gt=0)] = 300.0
    """Power on top of it when computing at the nominal clock."""
    knee: Annotated[float, Field(gt=0, lt=1)] = 0.625
    """Clock, as a share of the nominal one, below which the voltage falls no further."""
    knee_voltage: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Voltage there, as a share of that at the nominal clock."""


class Run(Section):
    """The folder of the run and what is shown."""

    name: str = "run"
    """Goes into the folder's name."""
    folder: str = "runs"
    """Parent of all run folders; shared storage when the job spans hosts."""
    progress: bool = True
    """Show progress."""


class Config(Section):
    """Everything a run depends on."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    parallelism: Parallelism = Parallelism()
    elasticity: Elasticity = Elasticity()
    snapshot: Snapshot = Snapshot()
    checkpoint: Checkpoint = Checkpoint()
    dvfs: Dvfs = Dvfs()
    run: Run = Run()

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step over the whole job."""
        return self.training.train_batch_size // self.training.micro_batch_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in _problems(self):
            raise problem
        return self


def _problems(config: Config) -> list[ConfigError]:
    """Combinations that cannot work, each with its remedy."""
    found: list[ConfigError] = []
    train, model, elastic, optim = config.training, config.model, config.elasticity, config.optimizer
    if train.train_batch_size % train.micro_batch_size:
        found.append(
            ConfigError(
                "training.train_batch_size",
                train.train_batch_size,
                f"must be a multiple of training.micro_batch_size = {train.micro_batch_size}",
            )
        )
    if model.width % model.heads:
        found.append(ConfigError("model.width", model.width, f"must be a multiple of model.heads = {model.heads}"))
    if config.data.source not in SOURCES and ":" not in config.data.source:
        told = f"use one of {', '.join(SOURCES)}, or package.module:Class"
        found.append(ConfigError("data.source", config.data.source, told))
    if config.data.source in FILE_SOURCES and not config.data.path:
        found.append(ConfigError("data.path", "", f"data.source = '{config.data.source}' needs a path"))
    if optim.min_lr > optim.lr:
        found.append(ConfigError("optimizer.min_lr", optim.min_lr, f"must not exceed optimizer.lr = {optim.lr}"))
    if optim.warmup_steps > train.steps:
        found.append(
            ConfigError(
                "optimizer.warmup_steps",
                optim.warmup_steps,
                f"must not exceed training.steps = {train.steps}",
            )
        )
    if elastic.heartbeat_s * 2 > elastic.suspicion_s:
        found.append(
            ConfigError(
                "elasticity.heartbeat_s",
                elastic.heartbeat_s,
                f"must be at most half of elasticity.suspicion_s = {elastic.suspicion_s}",
            )
        )
    if elastic.suspicion_s >= elastic.collective_timeout_s:
        found.append(
            ConfigError(
                "elasticity.suspicion_s",
                elastic.suspicion_s,
                f"must be below elasticity.collective_timeout_s = {elastic.collective_timeout_s}",
            )
        )
    return found + _pipeline_problems(config) + _clock_problems(config.dvfs)


def _pipeline_problems(config: Config) -> list[ConfigError]:
    """Work that cannot be cut, or not for so many workers."""
    found: list[ConfigError] = []
    parallel, elastic = config.parallelism, config.elasticity
    if config.micro_batches * parallel.stages < elastic.min_workers:
        found.append(
            ConfigError(
                "elasticity.min_workers",
                elastic.min_workers,
                f"a step has only {config.micro_batches} micro-batches for each of {parallel.stages} stages; "
                "raise training.train_batch_size",
            )
        )
    if parallel.virtual_stages > 1 and parallel.stages == 1:
        found.append(
            ConfigError(
                "parallelism.virtual_stages",
                parallel.virtual_stages,
                "needs parallelism.stages > 1; one stage computes all layers at once",
            )
        )
    if parallel.fluid and parallel.stages == 1:
        found.append(
            ConfigError(
                "parallelism.fluid", True, "needs parallelism.stages > 1; with one stage there is nothing to cut"
            )
        )
    return found


def _clock_problems(dvfs: Dvfs) -> list[ConfigError]:
    """Clocks in the wrong order; 0 is known only when the device is."""
    named = [(key, getattr(dvfs, key)) for key in ("min_mhz", "nominal_mhz", "max_mhz")]
    given = [(key, mhz) for key, mhz in named if mhz]
    return [
        ConfigError(f"dvfs.{key}", mhz, f"must not exceed dvfs.{above} = {limit}")
        for (key, mhz), (above, limit) in pairwise(given)
        if mhz > limit
    ]


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Build a config from nested mappings.

    Raises:
        ConfigError: names the first wrong key, its value and the remedy.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `--section.key value` overrides.

    Args:
        path: of the file; None for the defaults.
        overrides: words of a command line.

    Raises:
        ConfigError: the file is missing or not TOML, or a key, value or combination is wrong.
    """
    return from_mapping(apply_overrides({} if path is None else _read(Path(path)), overrides))


def load_command(argv: Sequence[str], program: str) -> Config:
    """The config of a command line `--config FILE [--section.key value ...]`.

    Args:
        argv: its words.
        program: name for the usage that is shown, and the process ended with 2, when `--config` is missing.

    Raises:
        ConfigError: see `load`.
    """
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file")
    arguments, overrides = parser.parse_known_args(argv)
    return load(arguments.config, overrides)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError("--config", str(path), "no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("--config", str(path), f"cannot be read as TOML: {error}") from error


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `--section.key value` or `--section.key=value` pairs applied."""
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    words = list(overrides)
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        section, dot, key = name.removeprefix("--").partition(".")
        if not name.startswith("--") or not dot:
            raise ConfigError("command line", word, "write overrides as --section.key value")
        if not has_value:
            if not words:
                raise ConfigError(name, "", "needs a value")
            value = words.pop(0)
        target = merged.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(section, target, "must be a section, [" + section + "]")
        target[key.replace("-", "_")] = value
    return merged


def _explain(error: ValidationError) -> ConfigError:
    """The first problem of a pydantic report, in our words."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return ConfigError(key, problem["input"], f"unknown key; {_known(problem['loc'])}")
    return ConfigError(key, problem["input"], problem["msg"][:1].lower() + problem["msg"][1:])


def _known(location: tuple[int | str, ...]) -> str:
    """The keys that would have been right at this place."""
    section: Any = Config
    for part in location[:-1]:
        section = section.model_fields[str(part)].annotation
    return "known here: " + ", ".join(sorted(section.model_fields))
