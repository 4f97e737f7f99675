from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.telemetry.sources.slope import Slope

counters = st.integers(min_value=0, max_value=2**64 - 1)
times = st.floats(min_value=0, max_value=2e9)


def test_needs_two_readings() -> None:
    rate = Slope(scale=100)
    assert rate.since_last(7, 10.0) is None
    assert rate.since_last(8, 12.0) == 50


def test_has_none_after_a_reset_and_starts_anew() -> None:
    rate = Slope()
    assert [rate.since_last(count, now_s) for count, now_s in [(100, 0.0), (0, 1.0), (5, 2.0)]] == [None, None, 5]


def test_has_none_while_the_clock_stands_still_or_goes_back() -> None:
    rate = Slope()
    readings = [rate.since_last(count, now_s) for count, now_s in [(0, 5.0), (1, 5.0), (2, 4.0), (4, 5.0)]]
    assert readings == [None, None, None, 2]


@given(st.lists(st.tuples(counters, times)))
def test_is_never_negative(readings: list[tuple[int, float]]) -> None:
    rate = Slope()
    slopes = [rate.since_last(count, now_s) for count, now_s in readings]
    assert all(slope is None or slope >= 0 for slope in slopes)
