"""Every wrong key, value and combination is refused with the key, the value and the remedy."""

from pathlib import Path

import pytest

from elaswave.config import Config, Schedule, apply_overrides, from_mapping, load
from elaswave.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "key", "remedy"),
    [
        ({"training": {"stpes": 1}}, "training.stpes", "known here: .*steps"),
        ({"nope": {}}, "nope", "known here: .*training"),
        ({"training": {"steps": 0}}, "training.steps", "greater than or equal to 1"),
        ({"training": {"steps": "many"}}, "training.steps", "valid integer"),
        ({"training": {"train_batch_size": 5}}, "training.train_batch_size", "multiple of training.micro_batch_size"),
        ({"model": {"width": 10, "heads": 4}}, "model.width", "multiple of model.heads"),
        (
            {"data": {"source": "web"}},
            "data.source",
            "one of digits, masked, stdlib, text, tokens, or package.module:Class",
        ),
        ({"data": {"source": "text"}}, "data.path", "needs a path"),
        ({"optimizer": {"lr": 1e-4, "min_lr": 1e-3}}, "optimizer.min_lr", "must not exceed"),
        ({"training": {"steps": 2}}, "optimizer.warmup_steps", "must not exceed training.steps"),
        ({"elasticity": {"heartbeat_s": 2.0}}, "elasticity.heartbeat_s", "half of elasticity.suspicion_s"),
        ({"elasticity": {"suspicion_s": 90.0}}, "elasticity.suspicion_s", "below elasticity.collective_timeout_s"),
        ({"elasticity": {"min_workers": 99}}, "elasticity.min_workers", "raise training.train_batch_size"),
        ({"training": {"numerics": "sloppy"}}, "training.numerics", "exact.*fast"),
        ({"training": {"precision": "fp8"}}, "training.precision", "fp32.*bf16"),
        ({"parallelism": {"stages": 0}}, "parallelism.stages", "greater than or equal to 1"),
        ({"parallelism": {"schedule": "zb-v"}}, "parallelism.schedule", "gpipe.*1f1b.*1f1b-split"),
        ({"parallelism": {"virtual_stages": 2}}, "parallelism.virtual_stages", "needs parallelism.stages > 1"),
        ({"parallelism": {"fluid": True}}, "parallelism.fluid", "needs parallelism.stages > 1"),
    ],
)
def test_refused(values: dict, key: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy) as caught:
        from_mapping(values)
    assert caught.value.key == key


def test_each_stage_has_work_for_as_many_workers_as_there_are_micro_batches() -> None:
    values = {"training": {"train_batch_size": 8, "micro_batch_size": 2}, "elasticity": {"min_workers": 8}}
    with pytest.raises(ConfigError, match="4 micro-batches for each of 1 stages"):
        from_mapping(values)
    assert from_mapping({**values, "parallelism": {"stages": 2}}).micro_batches == 4


def test_a_pipeline_as_words_of_the_command_line() -> None:
    config = load(None, ["--parallelism.stages=2", "--parallelism.fluid", "true", "--parallelism.schedule=1f1b-split"])
    assert (config.parallelism.stages, config.parallelism.fluid) == (2, True)
    assert config.parallelism.schedule is Schedule.SPLIT


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[training]\nsteps = 50\nseed = 3\n")
    config = load(path, ["--training.steps", "60", "--snapshot.verify=false", "--run.name=x"])
    assert (config.training.steps, config.training.seed) == (60, 3)
    assert config.snapshot.verify is False


@pytest.mark.parametrize("words", [["steps"], ["--steps", "3"], ["--training.steps"]])
def test_malformed_override(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        apply_overrides({}, words)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "b.toml"
    broken.write_text("[training\n")
    with pytest.raises(ConfigError, match="TOML"):
        load(broken)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().training.steps = 3  # type: ignore[misc]
