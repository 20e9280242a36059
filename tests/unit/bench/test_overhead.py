"""What the overhead bench refuses, whom it sets beside whom, and what it promises; nothing is started."""

import argparse
import importlib.util

import pytest

from elaswave.bench import overhead
from elaswave.bench.overhead import (
    BARE,
    CONTENDERS,
    DDP,
    DEEPSPEED,
    EXACT,
    EXACT_BARE,
    EXACT_STAGES,
    FAST,
    FAST_STAGES,
    ONE_F_ONE_B,
    OURS,
    RIVALS,
    ZERO,
    ratios_of,
    settings_of,
    targets_of,
)
from elaswave.bench.result import as_json
from elaswave.bench.rivals.deepspeed_zero import settings
from elaswave.bench.rivals.pipelining import cuts
from elaswave.errors import BenchError, ConfigError

STEP_MS = {EXACT: 110.0, FAST: 98.0, DDP: 100.0, ZERO: 101.0, DEEPSPEED: 130.0, EXACT_STAGES: 90.0, ONE_F_ONE_B: 100.0}


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    overhead.add_arguments(parser)
    return parser.parse_args(words)


def measured_of(names, first_loss=5.5):
    """Two blocks of every contender, the second under twice the load."""
    found = {}
    for name in names:
        step_ms = STEP_MS.get(name, 100.0)
        found[name] = {
            "step_ms": [step_ms, 2 * step_ms],
            "cpu_per_worker_ms": [step_ms, step_ms],
            "peak_mib": [60.0, 60.0] if name == EXACT else [50.0, 50.0],
            "first_loss": [first_loss, first_loss],
        }
        if name in (EXACT, FAST, EXACT_STAGES, FAST_STAGES):
            found[name]["copies_mib"] = [10.0, 10.0]
    return found


def fake(monkeypatch, asked, **losses):
    def take_turns(contenders, *, workers, steps, repetitions):
        asked.append((list(contenders), workers, steps, repetitions))
        measured = measured_of(contenders)
        for name, loss in losses.items():
            measured[{"ddp": DDP}[name]]["first_loss"] = [loss]
        return measured

    monkeypatch.setattr(overhead, "take_turns", take_turns)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--workers", "1"), "--workers = 1: give at least 2"),
        (("--workers", "3"), "--workers = 3: must divide the 8 micro-batches"),
        (("--repetitions", "0"), "--repetitions = 0"),
        (("--steps", "0"), "--steps = 0"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, key):
    with pytest.raises(ConfigError, match=key):
        overhead.run(parse(*words, "--contenders", DDP))


def test_a_contender_that_is_named_must_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"deepspeed ZeRO-1'.*is not installed: pip install -e .\[bench\]"):
        overhead.run(parse("--contenders", DEEPSPEED))


def test_a_contender_that_is_not_installed_is_left_out_and_named(monkeypatch):
    asked = []
    fake(monkeypatch, asked)
    monkeypatch.setattr(overhead, "contender", lambda name, base, workers: name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = overhead.run(parse("--steps", "2"))
    assert asked == [([name for name in CONTENDERS if name != DEEPSPEED], 2, 2, 15)]
    assert DEEPSPEED not in result.contenders
    assert any(note.startswith("deepspeed ZeRO-1 was left out") for note in result.notes)


def test_the_result_has_figures_ratios_and_targets(monkeypatch):
    asked = []
    fake(monkeypatch, asked)
    result = overhead.run(parse("--contenders", EXACT, EXACT_BARE, DDP, "--repetitions", "2"))
    assert asked == [([EXACT, EXACT_BARE, DDP], 2, 2, 2)]
    assert set(result.contenders) == {EXACT, EXACT_BARE, DDP}
    assert set(result.contenders[DDP]) == {"step_ms", "cpu_per_worker_ms", "peak_mib"}
    assert set(result.ratios) == {
        f"{EXACT} / {DDP}, step_ms",
        f"{EXACT} / {DDP}, cpu_per_worker_ms",
        f"{EXACT} / ({DDP} + copies), peak_mib",
        f"{EXACT_BARE} / {DDP}, peak_mib",
    }
    assert [target.met for target in result.targets] == [True, True]
    assert "first_loss" not in as_json(result, {})


def test_contenders_that_train_something_else_are_an_error(monkeypatch):
    fake(monkeypatch, [], ddp=5.6)
    with pytest.raises(BenchError, match="do not train the same"):
        overhead.run(parse("--contenders", EXACT, DDP))


def test_ratios_pair_the_same_kind_only():
    ratios = ratios_of(measured_of(CONTENDERS))
    for kind, rivals in RIVALS.items():
        for rival in rivals:
            beside = {name.split(" / ")[0] for name in ratios if f" / {rival}, step_ms" in name}
            assert beside == set(OURS[kind])
    assert f"{EXACT_STAGES} / {DDP}, step_ms" not in ratios
    assert ratios[f"{EXACT} / {DDP}, step_ms"].median == pytest.approx(1.1)


def test_targets_are_against_the_best_rival_of_each_kind():
    measured = measured_of(CONTENDERS)
    targets = {target.name: target for target in targets_of(measured, ratios_of(measured))}
    assert set(targets) == {
        f"data parallel: {EXACT} / {DDP}, step_ms",
        f"data parallel: {FAST} / {DDP}, step_ms",
        f"data parallel: {EXACT} / ({DDP} + copies), peak_mib",
        f"data parallel: {FAST} / ({DDP} + copies), peak_mib",
        f"sharded optimizer: {EXACT} / {ZERO}, step_ms",
        f"sharded optimizer: {FAST} / {ZERO}, step_ms",
        f"sharded optimizer: {EXACT} / ({ZERO} + copies), peak_mib",
        f"sharded optimizer: {FAST} / ({ZERO} + copies), peak_mib",
        f"pipeline: {EXACT_STAGES} / {ONE_F_ONE_B}, step_ms",
        f"pipeline: {FAST_STAGES} / {ONE_F_ONE_B}, step_ms",
        f"pipeline: {EXACT_STAGES} / ({ONE_F_ONE_B} + copies), peak_mib",
        f"pipeline: {FAST_STAGES} / ({ONE_F_ONE_B} + copies), peak_mib",
    }
    assert {target.goal for target in targets.values()} == {"<= 1.1", "<= 1"}
    assert targets[f"data parallel: {EXACT} / {DDP}, step_ms"].met
    assert targets[f"data parallel: {EXACT} / ({DDP} + copies), peak_mib"].value == pytest.approx(1.0)
    assert targets[f"pipeline: {FAST_STAGES} / {ONE_F_ONE_B}, step_ms"].value == pytest.approx(1.0)


def test_our_contenders_differ_in_what_their_names_say():
    assert settings_of(EXACT, 2) == {"training": {"numerics": "exact"}}
    assert settings_of(BARE[FAST], 2) == {"training": {"numerics": "fast"}, "snapshot": {"copies": 0}}
    assert settings_of(FAST_STAGES, 2) == {
        "training": {"numerics": "fast"},
        "parallelism": {"stages": 2, "schedule": "1f1b"},
    }


def test_stages_have_equally_many_layers():
    assert cuts(8, 2) == [0, 4, 8]
    assert cuts(7, 2) == [0, 4, 7]
    assert cuts(10, 4) == [0, 3, 5, 8, 10]


def test_deepspeed_trains_the_same_global_batch():
    config = overhead.workload(None)
    wanted = settings(config, config.micro_batches // 2)
    sizes = [wanted[key] for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")]
    assert 2 * sizes[0] * sizes[1] == wanted["train_batch_size"] == config.training.train_batch_size
    assert wanted["zero_optimization"]["stage"] == 1
