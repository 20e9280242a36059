"""Cutting layers into stages: exact against brute force, within memory, and fractional on average."""

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from elaswave.errors import ConfigError
from elaswave.planner.graph import cut, fluid

COSTS = st.lists(st.integers(1, 9), min_size=1, max_size=7)
CAPACITIES = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)


def worst(costs, capacities, cuts):
    loads = [sum(costs[a:b]) for a, b in pairwise(cuts)]
    return max(load / capacity for load, capacity in zip(loads, capacities, strict=True) if capacity)


def legal(costs, capacities, cuts, limits):
    few = len(costs) < sum(capacity > 0 for capacity in capacities)
    widths = [b - a for a, b in pairwise(cuts)]
    sizes = [sum(costs[a:b]) for a, b in pairwise(cuts)]
    filled = all(w == 0 if c == 0 else w > 0 or few for w, c in zip(widths, capacities, strict=True))
    return filled and all(size <= limit for size, limit in zip(sizes, limits, strict=True))


@settings(max_examples=60, deadline=None)
@given(COSTS, CAPACITIES, st.integers(3, 40))
def test_minimax_equals_brute_force(costs, capacities, limit):
    limits = [limit] * len(capacities)
    inner = combinations_with_replacement(range(len(costs) + 1), len(capacities) - 1)
    every = [cuts for cuts in ((0, *bounds, len(costs)) for bounds in inner) if legal(costs, capacities, cuts, limits)]
    if not every:
        with pytest.raises(ConfigError, match="fit"):
            cut(costs, capacities, memory=costs, limits=limits)
        return
    found = cut(costs, capacities, memory=costs, limits=limits)
    assert legal(costs, capacities, found, limits)
    assert worst(costs, capacities, found) == min(worst(costs, capacities, cuts) for cuts in every)


def test_a_layer_too_large_is_named():
    with pytest.raises(ConfigError, match="layer 1 of 9 bytes"):
        cut([1, 1], [1, 1], memory=[1, 9], limits=[4, 4])


def test_limits_without_the_bytes_of_layers_are_refused():
    with pytest.raises(ConfigError, match="need memory"):
        cut([1, 1], [1, 1], limits=[4, 4])


def test_a_stage_begins_only_where_it_may():
    assert cut([1] * 8, [1, 1], boundaries=[3, 6]) == (0, 3, 8)


def test_a_lost_stage_gets_no_layer():
    assert cut([1] * 6, [2, 0, 1]) == (0, 4, 4, 6)


@settings(max_examples=60, deadline=None)
@given(COSTS, CAPACITIES, st.integers(1, 20))
def test_fluid_cuts_are_fractional_on_average(costs, capacities, num_micro_batches):
    cuts = np.array(fluid(costs, capacities, num_micro_batches))
    share = np.cumsum([0, *capacities]) / sum(capacities) * sum(costs)
    ideal = np.interp(share, np.cumsum([0, *costs]), np.arange(len(costs) + 1))
    assert (np.diff(cuts, axis=1) >= 0).all()
    assert (cuts[:, 0] == 0).all()
    assert (cuts[:, -1] == len(costs)).all()
    assert (cuts.max(axis=0) - cuts.min(axis=0) <= 1).all()
    assert (abs(cuts.mean(axis=0) - ideal) <= 1 / num_micro_batches + 1e-9).all()


def least_of_milp(costs, capacities, limits):
    """The least maximum of cost / capacity as a mixed integer linear program: layer i is on stage p, in order."""
    layers, stages = len(costs), [p for p, capacity in enumerate(capacities) if capacity]
    index = {(i, p): at for at, (i, p) in enumerate((i, p) for i in range(layers) for p in stages)}
    size = len(index) + 1  # the last variable is the maximum
    rows, low, high = [], [], []

    def add(terms, least, most):
        row = np.zeros(size)
        for at, value in terms:
            row[at] += value
        rows.append(row)
        low.append(least)
        high.append(most)

    for i in range(layers):
        add([(index[i, p], 1) for p in stages], 1, 1)
        if i:
            place = [*((index[i, p], p) for p in stages), *((index[i - 1, p], -p) for p in stages)]
            add(place, 0, np.inf)
    for p in stages:
        add([*((index[i, p], costs[i] / capacities[p]) for i in range(layers)), (size - 1, -1)], -np.inf, 0)
        add([(index[i, p], costs[i]) for i in range(layers)], 0, limits[p])
        if layers >= len(stages):
            add([(index[i, p], 1) for i in range(layers)], 1, np.inf)
    found = milp(
        c=np.eye(size)[-1],
        constraints=LinearConstraint(np.array(rows), low, high),
        integrality=[1] * (size - 1) + [0],
        bounds=Bounds(0, [1] * (size - 1) + [np.inf]),
    )
    return found.fun if found.success else None


@settings(max_examples=40, deadline=None)
@given(COSTS, CAPACITIES, st.one_of(st.none(), st.integers(5, 30)))
def test_minimax_equals_a_linear_program(costs, capacities, limit):
    limits = [np.inf if limit is None else limit] * len(capacities)
    least = least_of_milp(costs, capacities, limits)
    memory = {} if limit is None else {"memory": costs, "limits": limits}
    if least is None:
        with pytest.raises(ConfigError, match="fit"):
            cut(costs, capacities, **memory)
    else:
        assert worst(costs, capacities, cut(costs, capacities, **memory)) == pytest.approx(least)
