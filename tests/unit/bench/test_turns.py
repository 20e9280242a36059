"""Laps of several workers become one value per block, and memory is told as this process has it."""

import pytest

from elaswave.bench import resident
from elaswave.bench.turns import collect, summary
from elaswave.errors import BenchError

MIB = 1 << 20


def test_the_slowest_worker_counts_and_other_figures_are_means():
    workers = [
        [{"step_ms": 10.0, "cpu": 4.0, "loss": None}, {"step_ms": 30.0, "cpu": 4.0, "loss": None}],
        [{"step_ms": 20.0, "cpu": 6.0, "loss": 5.0}, {"step_ms": 20.0, "cpu": 8.0, "loss": 4.0}],
    ]
    found = collect(workers)
    assert found == {"step_ms": [20.0, 30.0], "cpu": [5.0, 6.0], "loss": [5.0, 4.0]}
    assert summary({"ours": found})["ours"]["cpu"].median == 5.5


def test_nothing_measured_is_an_error():
    with pytest.raises(BenchError, match="no block"):
        collect([[], []])


def test_memory_that_has_gone_counts_in_the_peak():
    resident.forget_peak()
    before = resident.now_bytes()
    memory = bytearray(b"\1") * (64 * MIB)
    assert resident.now_bytes() >= before + 60 * MIB
    del memory
    assert resident.peak_bytes() >= before + 60 * MIB
    assert resident.now_bytes() < before + 30 * MIB
    resident.forget_peak()
    assert resident.peak_bytes() < before + 30 * MIB
