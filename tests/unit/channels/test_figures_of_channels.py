"""Quantiles are right within their bucket, and nothing grows without end."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from swarm.channels.statistics import Histogram, Statistics


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_within_six_per_cent(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    found = histogram.quantile(q)
    assert found is not None
    assert abs(found - true) <= 0.0625 * true + 0.5


def test_of_nothing_there_is_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


def test_a_clock_that_went_back_counts_as_zero() -> None:
    histogram = Histogram()
    histogram.add(-5)
    assert histogram.quantile(1.0) == 0


def test_peers_that_went_away_are_summed_up_when_there_are_many() -> None:
    statistics = Statistics()
    for n in range(1000):
        flow = statistics.flow(f"peer{n}", "received", 2, "socket")
        flow.count(10)
        flow.latency_ns.add(1000)
        statistics.forget(f"peer{n}")
    rows = statistics.rows()
    assert len(rows) <= Statistics.MAX_PEERS + 2
    assert sum(row["bytes"] for row in rows) == 10_000
    (gone,) = [row for row in rows if row["peer"] == "gone"]
    assert gone["p50_us"] is not None
