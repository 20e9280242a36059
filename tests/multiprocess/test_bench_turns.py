"""Contenders of a bench are alive at once, compute one after the other, and train the same."""

import argparse
import os
import time
from contextlib import nullcontext
from itertools import pairwise

import pytest

from elaswave.bench import overhead
from elaswave.bench.overhead import DDP, EXACT, FAST_BARE, ONE_F_ONE_B, ZERO
from elaswave.bench.turns import Contender, take_turns
from elaswave.errors import BenchError

REPETITIONS = 3


class Stamping:
    """Tells when it last computed."""

    def __init__(self, worker: int) -> None:
        self.worker, self.begun, self.done, self.count = worker, 0.0, 0.0, 0

    def steps(self, count: int) -> None:
        self.begun = self.begun or time.monotonic()
        self.count += count
        sum(range(100_000))
        self.done = time.monotonic()

    def figures(self) -> dict[str, float | None]:
        begun, self.begun = self.begun, 0.0
        told = {"begun": begun, "done": self.done, "count": self.count, "pid": os.getpid()}
        return told if self.worker == 0 else dict.fromkeys(told)


class Failing(Stamping):
    def steps(self, count: int) -> None:
        raise RuntimeError("no such luck")


def contender(kind) -> Contender:
    return Contender(service=lambda: nullcontext({}), start=kind)


def test_blocks_of_different_contenders_do_not_overlap():
    found = take_turns(
        {name: contender(Stamping) for name in ("a", "b", "c")}, workers=2, steps=2, repetitions=REPETITIONS
    )
    assert all(metrics["count"] == [1 + 3 * n for n in range(1, REPETITIONS + 1)] for metrics in found.values())
    assert len({metrics["pid"][0] for metrics in found.values()}) == 3
    spans = sorted(span for one in found.values() for span in zip(one["begun"][1:], one["done"][1:], strict=True))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_contender_that_fails_is_named():
    with pytest.raises(BenchError, match=r"b failed") as raised:
        take_turns({"a": contender(Stamping), "b": contender(Failing)}, workers=2, steps=1, repetitions=1)
    assert "no such luck" in str(raised.value)


def test_all_contenders_train_the_same(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        "[model]\nlayers = 2\nwidth = 32\nheads = 2\nsequence_length = 32\n[training]\ntrain_batch_size = 8\n"
    )
    parser = argparse.ArgumentParser()
    overhead.add_arguments(parser)
    names = [EXACT, FAST_BARE, DDP, ZERO, ONE_F_ONE_B]
    words = ["--config", str(path), "--repetitions", "2", "--steps", "1", "--contenders", *names]
    result = overhead.run(parser.parse_args(words))  # refuses losses that differ
    assert list(result.contenders) == names
    assert all(metrics["step_ms"].n == 2 for metrics in result.contenders.values())
    assert result.contenders[EXACT]["copies_mib"].median > 0
    assert result.contenders[FAST_BARE]["copies_mib"].median == 0
