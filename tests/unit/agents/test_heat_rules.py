"""The rules of heat and power: what they promise whatever is read."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.agents.kinds.heat import BLIND_S, FanRule, Governor, Trend, heat_rule, power_rule, power_shares

CELSIUS = st.floats(-40, 150)
RULE = heat_rule(critical_celsius=85.0)


def settled(cores: int, celsius: float, seconds: int = 120) -> Governor:
    governor = Governor(RULE, cores)
    for second in range(seconds):
        governor.decide(float(second), celsius)
    return governor


@given(st.lists(st.tuples(st.none() | CELSIUS, st.none() | st.floats(-5, 80), st.integers(0, 70)), max_size=80))
def test_a_budget_is_always_from_one_core_to_all(readings: list[tuple[float | None, float | None, int]]) -> None:
    governor = Governor(RULE, 16)
    for second, (celsius, trip, in_use) in enumerate(readings):
        before = governor.cores
        decision = governor.decide(float(second), celsius, trip_celsius=trip, cores_in_use=in_use)
        assert 1 <= decision.cores <= 16
        assert decision.changed == (decision.cores != before)
        assert str(decision.cores) in decision.reason


@given(st.lists(st.floats(20, 70), min_size=1, max_size=300), st.integers(1, 128))
def test_a_host_that_stays_cool_keeps_all_its_cores(readings: list[float], cores: int) -> None:
    """Unless it climbs so fast that it would not stay cool: the readings jump by less than that here."""
    governor = Governor(RULE, cores)
    smooth = readings[0]
    for second, reading in enumerate(readings):
        smooth += max(-0.3, min(0.3, reading - smooth))
        assert governor.decide(float(second), smooth).cores == cores


def test_near_the_trip_point_of_the_hardware_there_is_one_core_at_once() -> None:
    governor = settled(32, 60.0)
    decision = governor.decide(120.0, 61.0, trip_celsius=2.5)
    assert (decision.cores, decision.changed) == (1, True)
    assert decision.reason.endswith("2.5 °C to the trip point of the hardware: 1 instead of 32 cores")


def test_a_climb_is_answered_before_the_limit_is_reached() -> None:
    governor, second, celsius = Governor(RULE, 8), 0, 50.0
    while governor.decide(float(second), celsius).cores == 8:
        second, celsius = second + 1, celsius + 1.0
    assert RULE.limit - 10 < celsius < RULE.limit


def test_cores_that_nobody_uses_are_taken_with_the_first_cut() -> None:
    governor = settled(64, 70.0)
    governor.decide(121.0, 95.0, cores_in_use=8)
    assert governor.decide(122.0, 95.0, cores_in_use=8).cores < 8


def test_one_spike_of_a_sensor_takes_no_cores() -> None:
    governor = settled(8, 70.0)
    assert governor.decide(120.0, 78.0).cores == 8
    assert governor.decide(121.0, 70.0).cores == 8


def test_cores_come_back_slowly_and_all_of_them() -> None:
    governor = settled(8, 70.0)
    for second in range(120, 126):
        governor.decide(float(second), 95.0)
    throttled = governor.cores
    assert throttled < 8
    grown = []
    for second in range(126, 1800):
        decision = governor.decide(float(second), 50.0)
        if decision.changed:
            grown.append((second, decision.cores))
    assert grown[-1][1] == 8
    assert all(later[0] - sooner[0] >= 30 for sooner, later in itertools.pairwise(grown))
    assert [cores for _, cores in grown] == sorted(cores for _, cores in grown)


def test_what_was_too_much_is_tried_again_ever_more_seldom() -> None:
    """A host that follows its cores at once: three are well, four are not."""
    governor, tried_s = Governor(RULE, 8), []
    for second in range(7200):
        before = governor.cores
        decision = governor.decide(float(second), 40.0 + 11 * before)
        if decision.cores == 4 > before:
            tried_s.append(second)
    waits = [later - sooner for sooner, later in itertools.pairwise(tried_s)]
    assert waits == sorted(waits)
    assert waits[0] < 150
    assert 480 <= waits[-1] < 600
    assert len(waits) >= 5


def test_without_a_reading_the_budget_stays_for_a_while_and_is_then_given_back() -> None:
    governor = settled(8, 70.0)
    cut = governor.decide(120.0, 99.0).cores
    assert cut < 8
    assert governor.decide(120.0 + BLIND_S, None).cores == cut
    decision = governor.decide(121.0 + BLIND_S, None)
    assert (decision.cores, decision.reason) == (8, "no temperature can be read: nothing is known, all 8 cores")


@pytest.mark.parametrize(("slope", "tolerance"), [(0.0, 0.01), (0.2, 0.6), (-0.2, 0.6)])
def test_a_forecast_tells_its_own_error(slope: float, tolerance: float) -> None:
    trend = Trend(horizon_s=10.0)
    for second in range(200):
        trend.learn_one(float(second), 60.0 + slope * second)
    assert trend.error == pytest.approx(abs(slope) * (10 - 20 * (1 - math.exp(-0.5))), abs=tolerance)


def test_no_forecast_before_the_first_reading() -> None:
    with pytest.raises(ValueError, match="nothing was read"):
        Trend(1.0).forecast(1.0)


@given(st.integers(2, 64), st.floats(0.3, 0.9), st.floats(0, 0.2))
def test_power_settles_within_its_limit(cores: int, part: float, idle: float) -> None:
    """A host draws what its busy cores draw; the limit is above that of one core."""
    most_watts = 10.0 * cores
    limit = max(part * most_watts, 1.2 * (10.0 + idle * most_watts))
    governor = Governor(power_rule(limit), cores)
    watts = [
        idle * most_watts + 10.0 * governor.decide(float(s), idle * most_watts + 10.0 * governor.cores).cores
        for s in range(400)
    ]
    over = [w for w in watts[40:] if w > limit]
    assert len(over) <= 0.15 * len(watts)  # trying one more core now and then
    assert max(over, default=0.0) <= limit + 10.0 * max(1, cores // 4)


NEEDS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.none() | st.floats(0, 2000), min_size=1, max_size=12
)


@given(st.floats(1, 5000), NEEDS)
def test_shares_of_power_are_fair_and_no_more_than_there_is(limit: float, needs: dict[str, float | None]) -> None:
    shares = power_shares(limit, needs)
    assert list(shares) == list(needs)
    assert math.fsum(shares.values()) <= limit * (1 + 1e-9)
    assert all(share >= 0 for share in shares.values())
    blind = [shares[host] for host, need in needs.items() if need is None]
    assert blind == pytest.approx([limit / len(needs)] * len(blind))
    metered = {host: need for host, need in needs.items() if need is not None}
    if metered:
        assert math.fsum(shares.values()) == pytest.approx(limit)
        hungry = [shares[host] for host, need in metered.items() if shares[host] < need * (1 - 1e-9)]
        assert all(share >= max(shares[h] for h in metered) * (1 - 1e-9) for share in hungry)
    for host, need in metered.items():
        for other, wants in metered.items():
            if need >= wants:
                assert shares[host] >= shares[other] * (1 - 1e-9)


def test_fans_are_full_from_the_dead_band_on_until_a_minute_of_calm() -> None:
    rule = FanRule(RULE)
    assert not rule.decide(0.0, RULE.limit - 10)
    assert rule.decide(1.0, RULE.limit - 2)
    assert rule.decide(2.0, RULE.limit - 5)  # cooler, yet not well below
    assert rule.decide(61.0, RULE.limit - 20)
    assert not rule.decide(62.0, RULE.limit - 20)
