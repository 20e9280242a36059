"""What moves is measured beside what stays: by the slowest worker, and by the one that receives most."""

import argparse

import pytest

from elaswave.bench import migration
from elaswave.bench.migration import BACKGROUND, BASELINE, BEST, BLOCKING, CONTENDERS
from elaswave.bench.paced import Blocks
from elaswave.config import ZeroLayout
from elaswave.errors import BenchError, ConfigError
from elaswave.pipeline.layers import Layers
from elaswave.planner.graph import cut


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    migration.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", "2"),
        ("--workers", "7"),
        ("--layers", "2"),
        ("--layers", "5"),
        ("--width", "100"),
        ("--repetitions", "0"),
        ("--layer-ms", "-1"),
        ("--copies", "-1"),
    ],
)
def test_what_cannot_be_measured_is_refused(words):
    with pytest.raises(ConfigError, match=words[0]):
        migration.run(parse(*words))


def test_the_goal_is_measured_by_default():
    arguments = parse()
    assert (arguments.workers, arguments.layers) == (8, 16)
    migration.check(arguments)


@pytest.mark.parametrize("num_layers", [4, 6, 16, 40])
def test_one_layer_moves_there_and_back(num_layers):
    half = num_layers // 2
    assert cut(migration.costs_of(num_layers, shifted=False), [4, 4]) == (0, half, num_layers)
    assert cut(migration.costs_of(num_layers, shifted=True), [4, 4]) == (0, half - 1, num_layers)


def test_layers_are_equal_and_their_shards_too():
    sizes = Layers(Blocks(6, 64, 0.0), seed=1).table.unit_sizes()
    assert set(sizes) == {12 * 64**2}
    assert 12 * 64**2 % (256 * 4) == 0


def test_every_contender_has_its_turn_in_every_repetition():
    order = list(migration.visits(5))
    turns = [order[start : start + 4] for start in range(0, 20, 4)]
    assert all(sorted(turn) == sorted(CONTENDERS) for turn in turns)
    assert len(set(map(tuple, turns))) > 1


def test_contenders_differ_in_one_setting_each():
    arguments = parse("--copies", "1")
    waiting = migration.config_of(arguments, ZeroLayout.INTERLEAVED, background=False)
    assert not waiting.elasticity.background_migration
    assert waiting.snapshot.copies == 1
    assert waiting.micro_batches == 8
    other = migration.config_of(arguments, ZeroLayout.CONTIGUOUS)
    assert other.elasticity.background_migration
    assert other.parallelism.zero_layout is ZeroLayout.CONTIGUOUS


def move(first_s: float, late_s: float = 0.0, state: int = 1 << 20) -> migration.Move:
    """Of one worker: it computes after `first_s`, in healthy steps after 0.1 s."""
    return {
        "committed": [10.0, 13.0 + first_s, 15.5 + first_s, 17.5 + first_s, 19.5 + first_s],
        "resumed": 10.0 + first_s / 2,
        "first_forward": [10.0 + first_s, 13.1 + first_s, 15.6 + first_s, 17.6 + first_s],
        "waited_at_end_s": late_s,
        "state_bytes": state,
        "weight_bytes": 2 << 20,
    }


def test_the_slowest_worker_is_waited_for():
    found = migration.figures([[move(0.5)], [move(0.8, 0.25, 3 << 20)]])
    assert found["until_computing_ms"][0] == pytest.approx(700.0)
    assert found["waited_at_end_ms"] == [250.0]
    assert found["stall_ms"][0] == pytest.approx(950.0)
    assert found["resumed_ms"][0] == pytest.approx(400.0)
    assert found["healthy_step_ms"][0] == pytest.approx(2000.0)
    assert found["step_longer_ms"][0] == pytest.approx(1800.0)
    assert found["next_step_longer_ms"][0] == pytest.approx(500.0)
    assert found["state_received_mib"] == [3.0]
    assert found["state_received_by_all_mib"] == [4.0]
    assert found["weights_received_mib"] == [2.0]


def measured(best_ms: float, best_mib: float) -> dict[str, dict[str, list[float]]]:
    waiting = {"stall_ms": [100.0, 300.0], "step_longer_ms": [50.0, 50.0], "state_received_mib": [8.0, 8.0]}
    best = {"stall_ms": [best_ms, 3 * best_ms], "step_longer_ms": [1.0, 2.0], "state_received_mib": [best_mib] * 2}
    return {name: best if name == BEST else waiting for name in CONTENDERS}


def test_targets_compare_moves_of_the_same_number():
    for stall_ms, mib, met in ((20.0, 2.0, [True, True]), (21.0, 2.1, [False, False])):
        ratios = migration.ratios_of(measured(stall_ms, mib))
        assert ratios[f"{BEST} / {BASELINE}, stall_ms"].median == pytest.approx(stall_ms / 100)
        assert [target.met for target in migration.targets_of(ratios, 4)] == met
    assert {name.split(", ")[1] for name in CONTENDERS} == {BLOCKING, BACKGROUND}


def test_other_bits_than_those_of_an_unharmed_run_are_an_error():
    ranks = [
        {"digests": {1: "a", 2: "b"}},
        {"digests": {1: "a", 2: "c", 3: "d"}},
        {"digests": {1: "a", 2: "b", 3: "e"}},
    ]
    with pytest.raises(BenchError, match="worker 1: the state of step 2"):
        migration.compare(ranks)
