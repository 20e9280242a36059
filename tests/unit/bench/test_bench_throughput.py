"""The bench of throughput tells every policy's share of the bound, ratios per rival, and what was promised."""

import argparse
import json

import pytest

from elaswave.bench import throughput
from elaswave.bench.result import as_json, machine
from elaswave.errors import ConfigError
from elaswave.simulator.comparison import PAPER, Grid

SMALL = throughput.Case(name="2x3", grid=Grid(replicas=2, stages=3, layers=12, micro_batches=12), lost=1)
HALVES = throughput.Case(name="2x2", grid=Grid(replicas=2, stages=2, layers=4, micro_batches=8), lost=2)
PAPERS = throughput.Case(name="2x6", grid=PAPER, lost=1)


def bench(monkeypatch: pytest.MonkeyPatch, *cases: throughput.Case, draws: int = 2):
    monkeypatch.setattr(throughput, "CASES", cases)
    options = argparse.Namespace(draws=draws, schedule="1f1b-split", no_emulation=True)
    return json.loads(as_json(throughput.run(options), machine()))


def test_every_policy_has_its_share_and_every_rival_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench(monkeypatch, SMALL)
    shares = {name: metrics["share_of_bound"]["median"] for name, metrics in result["contenders"].items()}
    assert set(shares) == {f"{name}, {SMALL}" for name in (throughput.OURS, *throughput.RIVALS)}
    for rival in throughput.RIVALS:
        assert result["ratios"][f"elaswave / {rival}, {SMALL}"] >= 1
    assert shares[f"torchft, {SMALL}"] < 0.7 < shares[f"elaswave, {SMALL}"]
    assert [target["goal"] for target in result["targets"]] == [">= 0.95", *[">= 1"] * 4]


def test_the_papers_grid_has_goals_of_its_own_and_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = bench(monkeypatch, PAPERS, draws=1)["targets"]
    assert {target["goal"] for target in targets} == {">= 0.97", ">= 1.7", ">= 1.5", ">= 1"}
    assert all(target["met"] for target in targets)


def test_a_draw_is_the_same_again_and_another_one_differs() -> None:
    assert throughput.lost_ranks(PAPERS, 0) == throughput.lost_ranks(PAPERS, 0)
    assert len({throughput.lost_ranks(PAPERS, draw) for draw in range(9)}) > 1


def test_a_policy_that_cannot_go_on_has_no_ratio_for_that_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "lost_ranks", lambda case, draw: (0, 3))
    result = bench(monkeypatch, HALVES, draws=1)
    assert result["contenders"][f"torchft, {HALVES}"]["share_of_bound"]["median"] == 0
    assert f"elaswave / torchft, {HALVES}" not in result["ratios"]
    assert f"elaswave / recycle, {HALVES}" in result["ratios"]


def test_no_draws_are_refused() -> None:
    with pytest.raises(ConfigError, match="--draws = 0: give at least 1"):
        throughput.run(argparse.Namespace(draws=0, schedule="gpipe", no_emulation=True))
