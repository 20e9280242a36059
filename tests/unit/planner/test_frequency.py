"""Clocks: never slower than without, never more energy at equal speed, within limits, and settled when refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planning import jobs

from elaswave.planner.frequency import ClockProfile, Clocks, choose, recost, settle
from elaswave.planner.pace import finish
from elaswave.planner.scheduler import make_plan
from elaswave.planner.timetable import timetable

MANY = settings(max_examples=200, deadline=None)
RANGE = tuple(range(500, 1201, 10))
DEVICE = ClockProfile(nominal_mhz=1000)

loads = st.lists(st.floats(0, 10), min_size=1, max_size=12)
profiles = st.builds(
    ClockProfile,
    nominal_mhz=st.integers(400, 1300),
    compute_share=st.floats(0.05, 1),
    static_w=st.floats(0, 200),
    dynamic_w=st.floats(1, 400),
    knee=st.floats(0.1, 0.9),
    knee_voltage=st.floats(0.3, 1),
)
ranges = st.lists(st.integers(300, 1500), min_size=1, max_size=30)
boosts = st.floats(1, 1.5)


def times(clocks: Clocks) -> list[float]:
    return [
        load * clocks.request.profile.slowdown(mhz)
        for load, mhz in zip(clocks.request.loads_s, clocks.mhz, strict=True)
    ]


@pytest.mark.parametrize(
    ("x", "time", "power"), [(0.8, 1.225, 0.673), (0.9, 1.1, 0.821), (1.0, 1.0, 1.0), (1.1, 0.918, 1.212)]
)
def test_time_and_power_are_those_of_the_model(x, time, power):
    device = ClockProfile(nominal_mhz=1000, static_w=0.25, dynamic_w=0.75)
    assert device.slowdown(1000 * x) == pytest.approx(time, abs=5e-4)
    assert device.power_w(1000 * x) == pytest.approx(power, abs=5e-3)


def test_below_the_knee_the_voltage_stays():
    assert DEVICE.voltage(625) == pytest.approx(0.7)
    assert DEVICE.voltage(300) == 0.7
    assert DEVICE.energy_j(1000, 2.0, 5.0) == pytest.approx(2 * 400 + 3 * 100)


@MANY
@given(loads, ranges, profiles, boosts)
def test_never_slower_than_without_and_within_limits(loads_s, range_mhz, profile, boost):
    clocks = choose(loads_s, range_mhz, profile, boost=boost)
    assert clocks.step_s <= clocks.before[0] * (1 + 1e-8)
    assert clocks.step_s == max(times(clocks))
    allowed = [mhz for mhz in range_mhz if mhz <= profile.nominal_mhz * boost] or [min(range_mhz)]
    assert set(clocks.mhz) <= set(allowed)
    assert clocks == choose(loads_s, list(reversed(range_mhz)), profile, boost=boost)


@MANY
@given(loads, ranges, profiles)
def test_lowering_alone_keeps_the_speed_and_costs_no_energy(loads_s, range_mhz, profile):
    clocks = choose(loads_s, range_mhz, profile)
    assert clocks.step_s == pytest.approx(clocks.before[0], rel=1e-8)
    assert clocks.energy_j <= clocks.before[1] * (1 + 1e-8)


@MANY
@given(loads, ranges, profiles, boosts)
def test_nobody_could_be_lower(loads_s, range_mhz, profile, boost):
    clocks = choose(loads_s, range_mhz, profile, boost=boost)
    for load, mhz in zip(loads_s, clocks.mhz, strict=True):
        lower = [other for other in range_mhz if other < mhz]
        if lower and load > 1e-9:
            assert load * profile.slowdown(max(lower)) > clocks.step_s * (1 - 1e-8)


@MANY
@given(loads, ranges, profiles, boosts, st.data())
def test_a_clipped_request_settles_and_the_others_adapt(loads_s, range_mhz, profile, boost, data):
    own = data.draw(st.lists(st.sampled_from([None, 350, 900, 1450]), min_size=len(loads_s), max_size=len(loads_s)))

    def apply(asked):
        return [mhz if mine is None else mine for mhz, mine in zip(asked, own, strict=True)]

    clocks = settle(choose(loads_s, range_mhz, profile, boost=boost), apply)
    assert clocks.mhz == tuple(apply(clocks.mhz))
    assert clocks.step_s == max(times(clocks))


def test_who_binds_is_raised_and_who_waits_lowered():
    clocks = choose([1.0, 1.0, 1.25, 1.0], RANGE, DEVICE, boost=1.1)
    assert clocks.mhz == (860, 860, 1100, 860)
    assert clocks.step_s < clocks.before[0]
    assert clocks.reason == "1 raised to 1100 MHz, 3 lowered to 860 MHz: step time -8.2 %, energy -9.8 %"


def test_what_is_balanced_stays():
    clocks = choose([2.0] * 4, RANGE, DEVICE, boost=1.2)
    assert clocks.mhz == (1000,) * 4
    assert clocks.reason == "all stay at 1000 MHz"


def test_nobody_is_raised_further_than_even_shares_would_carry():
    clocks = choose([1.0, 1.05], RANGE, DEVICE, boost=1.2)
    assert clocks.step_s == pytest.approx(1.025, rel=0.01)
    assert clocks.mhz[1] < 1200


def test_a_refused_boost_lets_the_others_go_lower():
    asked = choose([1.0, 1.25, 1.0], RANGE, DEVICE, boost=1.1)
    given_back = recost(asked, [asked.mhz[0], 1000, asked.mhz[2]])
    assert given_back.mhz[1] == 1000
    assert given_back.mhz[0] < asked.mhz[0]
    assert given_back.step_s == pytest.approx(1.25)
    assert "1 at clocks of their own" in given_back.reason


def test_one_load_may_stand_for_many_members():
    few = choose([1.0, 1.2], RANGE, DEVICE, boost=1.1, counts=[3, 1])
    many = choose([1.0, 1.0, 1.0, 1.2], RANGE, DEVICE, boost=1.1)
    assert (few.mhz[0], few.mhz[1]) == (many.mhz[0], many.mhz[3])
    assert few.energy_j == pytest.approx(many.energy_j)
    assert few.reason == many.reason


@settings(max_examples=60, deadline=None)
@given(jobs(), boosts)
def test_the_fill_of_a_pipeline_is_not_slowed_either(job, boost):
    config, view, profile = job
    plan = make_plan(config, None, view, profile)
    parallel = config.parallelism
    table = timetable(
        plan.tasks, plan.stages, profile.costs, parallel.schedule, len(view.members), parallel.virtual_stages
    )
    ends = finish(plan.tasks, table.ops, profile.costs, parallel.schedule)
    nominal = [1.0] * len(view.members)
    assert ends(nominal) == pytest.approx(table.finish, rel=1e-5)
    assert ends([2.0] * len(view.members)) == pytest.approx(2 * table.finish, rel=1e-5)
    clocks = choose(table.busy, RANGE, DEVICE, boost=boost, step_s=ends)
    assert clocks.step_s <= ends(nominal) * (1 + 1e-8)
    lower = choose(table.busy, RANGE, DEVICE, boost=boost, tolerance=0.02, step_s=ends)
    assert lower.step_s <= clocks.step_s * (1.02 + 1e-8) or lower.step_s <= ends(nominal) * 1.02
    if boost == 1:
        assert clocks.energy_j <= clocks.before[1] * (1 + 1e-8)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: choose([], RANGE, DEVICE),
        lambda: choose([1.0, -1.0], RANGE, DEVICE),
        lambda: choose([1.0], [], DEVICE),
        lambda: choose([1.0], RANGE, DEVICE, boost=0.9),
        lambda: choose([1.0], RANGE, DEVICE, tolerance=-0.1),
        lambda: recost(choose([1.0], RANGE, DEVICE), [0]),
        lambda: recost(choose([1.0], RANGE, DEVICE), [900, 900]),
    ],
)
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="="):
        wrong()
