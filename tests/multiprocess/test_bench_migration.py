"""Layers change their stage in real jobs that go on with the same bits, and interleaved shards move the least."""

import argparse

from elaswave.bench import migration


def test_a_layer_moves_there_and_back():
    parser = argparse.ArgumentParser()
    migration.add_arguments(parser)
    small = ["--workers", "4", "--layers", "4", "--width", "64", "--layer-ms", "0"]
    result = migration.run(parser.parse_args([*small, "--copies", "1", "--repetitions", "1"]))
    assert result.contenders.keys() == set(migration.CONTENDERS)
    layer_mib = 12 * 12 * 64**2 / 2**20
    for name, metrics in result.contenders.items():
        share = 1 / 2 if name.startswith("interleaved") else 1
        assert metrics["state_received_mib"].max == share * layer_mib
        assert 0 < metrics["weights_received_mib"].max <= layer_mib / 3
        assert metrics["stall_ms"].n == 2
    by_name = {target.name: target for target in result.targets}
    assert by_name["bytes per rank, interleaved / contiguous"].met
    assert result.config["steps_compared"] > 10
