"""The shape of a bench's result: medians, paired ratios, targets, one line of JSON."""

import io
import json

import pytest
from rich.console import Console

from elaswave.bench.result import (
    Result,
    as_json,
    as_table,
    at_least,
    at_most,
    below,
    machine,
    paired_ratios,
    ratio_median,
    spread,
)

RESULT = Result(
    bench="example",
    config={"repetitions": 3},
    contenders={"ours": {"step_ms": spread([1.0, 3.0, 2.0])}, "theirs": {"step_ms": spread([10.0, 20.0, 40.0])}},
    ratios={"theirs / ours": spread(paired_ratios([10.0, 20.0, 40.0], [1.0, 3.0, 2.0]))},
    targets=(at_least("theirs / ours", 10.0, 5), below("ours", None, 1)),
    notes=("needs: pip install -e .[bench]",),
)


def test_spread_has_median_and_range() -> None:
    values = spread([3.0, 1.0, 2.0, 10.0])
    assert (values.median, values.min, values.max, values.n) == (2.5, 1.0, 10.0, 4)


def test_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no repetition"):
        spread([])


def test_ratios_are_paired_and_skip_failed_repetitions() -> None:
    assert paired_ratios([2.0, None, 9.0, 4.0], [1.0, 5.0, 3.0, None]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (at_least("x", 5.0, 5.0), True),
        (at_least("x", 4.9, 5.0), False),
        (at_most("x", 1.02, 1.02), True),
        (below("x", 1.0, 1.0), False),
        (below("x", None, 1.0), False),
    ],
)
def test_targets(target: object, met: bool) -> None:
    assert target.met is met


def test_json_is_one_line_with_the_agreed_keys() -> None:
    line = as_json(RESULT, {"cores": 2})
    assert "\n" not in line
    values = json.loads(line)
    assert {"bench", "machine", "config", "contenders", "ratios", "targets"} <= set(values)
    assert values["contenders"]["ours"]["step_ms"] == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert values["ratios"] == {"theirs / ours": 10.0}
    assert values["targets"][0] == {"name": "theirs / ours", "value": 10.0, "goal": ">= 5", "met": True}
    assert values["targets"][1] == {"name": "ours", "value": None, "goal": "< 1", "met": False}


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    odd = Result(bench="odd", config={"x": float("inf")}, contenders={"a": {"m": spread([float("nan")])}})
    assert json.loads(as_json(odd, {}))["config"] == {"x": None}


def test_table_shows_everything_literally() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(as_table(RESULT))
    text = out.getvalue()
    for part in ("example: median [min .. max]", "2.00 [1.00 .. 3.00]", "10.0", ">= 5", "yes", "no", ".[bench]"):
        assert part in text


def test_machine_tells_what_figures_depend_on() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert len(found["load_average"]) == 3
    json.dumps(found)


def test_ratio_median_of_an_unmeasured_ratio_is_none() -> None:
    assert ratio_median(RESULT.ratios, "nobody / ours") is None
