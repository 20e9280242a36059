"""The planner's bench tells times of every grid, how even plans are, and what was promised of both."""

import argparse
import json

import pytest

from elaswave.bench import planner
from elaswave.bench.result import as_json, machine

SMALL = planner.Grid(ranks=24, stages=4, layers=9, per_pipeline=8, dead=2)


def test_every_grid_has_times_and_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "GRIDS", (SMALL,))
    monkeypatch.setattr(planner, "GOALS_MS", {24: 1e9})
    result = json.loads(as_json(planner.run(argparse.Namespace(repetitions=2)), machine()))
    metrics = result["contenders"]["24 workers, 4 stages"]
    assert metrics["plan_ms"]["n"] == metrics["make_plan_ms"]["n"] == 2
    assert metrics["plan_cpu_ms"]["median"] > 0
    assert [target["name"] for target in result["targets"]] == [
        "whole plan, 24 workers, 4 stages, ms",
        "share of the bound, 24 workers, 4 stages",
    ]
    assert result["targets"][0]["met"]


def test_fluid_cuts_come_closest_to_the_bound_and_lone_pipelines_least() -> None:
    for grid in planner.GRIDS[:2]:
        shares = planner.balance(grid)
        assert 1 >= shares[planner.FLUID] > shares[planner.WHOLE] > shares[planner.DROP]
        assert shares == planner.balance(grid)
        assert shares[planner.FLUID] > planner.BALANCE_GOAL
