"""Models of every kind, in every precision, have the bits of one worker on a grid that loses a worker and gets one."""

from pathlib import Path

import pytest
from support.training import MiniJob, Zygote, digests, fault

MODELS = {
    "gpt": ("--model.name", "gpt"),
    "tied gpt": ("--model.tied", "true"),
    "mixer": ("--model.name", "mixer", "--data.source", "digits", "--model.sequence_length", "64"),
    "encoder": ("--model.name", "encoder", "--data.source", "masked"),
}
OPTIONS = {
    "bf16": ("--training.precision", "bf16"),
    "recomputed activations": ("--training.activation_checkpointing", "true"),
    "split backward": ("--parallelism.schedule", "1f1b-split"),
    "contiguous shards": ("--parallelism.zero_layout", "contiguous"),
    "waiting for state": ("--elasticity.background_migration", "false"),
    "gradients replayed by neighbours": ("--snapshot.mode", "gradient"),
}


def check(zygote: Zygote, folder: Path, words: tuple[str, ...]) -> None:
    with MiniJob(zygote, folder / "one", workers=1, overrides=words) as job:
        reference = digests(job.wait())
    with MiniJob(
        zygote,
        folder / "grid",
        workers=4,
        overrides=("--parallelism.stages", "2", *words),
        faults=fault([0], "backward", 2) + fault([1], "gather", 4),
    ) as job:
        history = job.wait()
    assert digests(history) == reference
    assert len(history.faults) == 2


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS.keys())
def test_any_model(zygote: Zygote, folder: Path, words: tuple[str, ...]) -> None:
    check(zygote, folder, words)


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS.keys())
def test_any_setting(zygote: Zygote, folder: Path, words: tuple[str, ...]) -> None:
    check(zygote, folder, words)


def test_everything_at_once(zygote: Zygote, folder: Path) -> None:
    check(
        zygote,
        folder,
        MODELS["encoder"] + OPTIONS["bf16"] + OPTIONS["recomputed activations"] + OPTIONS["split backward"],
    )
