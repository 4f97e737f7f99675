"""Forecasts: what will be full is said in time, what only looks so is not; and a worker that slows down is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import exp
from statistics import median

import pytest

from scheduler_plugins.decide.forecast import IN_A_ROW, SOON_S, Forecast, Paces, trend
from swarm.protocol import ClearAlert, RaiseAlert, Telemetry

LIMIT = 10**9
Made = tuple[list[float], bool]
"""Memory of a worker as a share of its limit, second by second, and whether the limit ends it."""


def leak(rng: random.Random) -> Made:
    slope, base, noise = rng.uniform(0.002, 0.02), rng.uniform(0.1, 0.4), rng.uniform(0.0, 0.08)
    since_s = rng.uniform(0.0, 60.0)
    series: list[float] = []
    while not series or series[-1] < 1.0:
        series.append(base + max(0.0, len(series) - since_s) * slope + rng.random() * noise)
    return series, True


def data_that_is_loaded(rng: random.Random) -> Made:
    top, rate = rng.uniform(0.3, 0.8), rng.uniform(0.005, 0.05)
    return [min(0.1 + s * rate, top) + rng.random() * 0.03 for s in range(600)], False


def spilling(rng: random.Random) -> Made:
    pace_s = rng.uniform(10.0, 60.0)
    return [0.1 + 0.6 * (1.0 - exp(-s / pace_s)) + rng.random() * 0.04 for s in range(600)], False


def tasks_that_give_it_back(rng: random.Random) -> Made:
    period_s, height, start = rng.uniform(5.0, 90.0), rng.uniform(0.2, 0.7), rng.random()
    return [0.15 + height * ((s / period_s + start) % 1.0) + rng.random() * 0.02 for s in range(600)], False


def wandering(rng: random.Random) -> Made:
    share, series = 0.4, []
    for _ in range(600):
        share = min(max(share + rng.gauss(0.0, 0.01), 0.1), 0.9)
        series.append(share)
    return series, False


def sample(at_s: float, share: float) -> Telemetry:
    return Telemetry(taken_at_s=at_s, worker_memory_bytes=int(share * LIMIT), worker_memory_limit_bytes=LIMIT)


def first_alert(series: list[float]) -> int | None:
    forecast = Forecast()
    forecast.worker_joined("w", "w0", "h")
    for second, share in enumerate(series):
        actions = forecast.telemetry_arrived("w", sample(second, share), float(second))
        if any(isinstance(action, RaiseAlert) for action in actions):
            return second
    return None


def fixed(series: list[float]) -> int | None:
    return next((second for second, share in enumerate(series) if share >= 0.8), None)


def half_space_trees(series: list[float]) -> int | None:
    """At the threshold that did best of 0.8, 0.9, 0.95 and 0.98."""
    from river.anomaly import HalfSpaceTrees

    model = HalfSpaceTrees(
        n_trees=10, height=8, window_size=30, seed=1, limits={"level": (0.0, 1.0), "slope": (0.0, 1.0)}
    )
    streak = 0
    for second, share in enumerate(series):
        slope = 0.5 + 2.0 * (share - series[max(second - 10, 0)])
        reading = {"level": min(share, 1.0), "slope": min(max(slope, 0.0), 1.0)}
        streak = streak + 1 if second > 30 and model.score_one(reading) > 0.95 else 0
        model.learn_one(reading)
        if streak >= IN_A_ROW:
            return second
    return None


def judged(detect: Callable[[list[float]], int | None], count: int) -> tuple[float, float, float]:
    """Share of ends that were foretold at least 10 s before, of false alarms, and the median of the seconds before."""
    leads, false, ends, others = [], 0, 0, 0
    for make in (leak, data_that_is_loaded, spilling, tasks_that_give_it_back, wandering):
        for seed in range(count):
            series, is_ended = make(random.Random(f"{make.__name__}{seed}"))
            at = detect(series)
            ends, others = ends + is_ended, others + (not is_ended)
            if is_ended and at is not None and len(series) - at >= 10:
                leads.append(len(series) - at)
            false += not is_ended and at is not None
    return len(leads) / ends, false / others, median(leads)


def test_leaks_are_foretold_and_little_else() -> None:
    found, false, lead_s = judged(first_alert, 40)
    assert found >= 0.97
    assert false <= 0.15
    assert lead_s >= 20.0


def test_it_does_better_than_a_threshold_and_than_half_space_trees() -> None:
    found, false, lead_s = judged(first_alert, 8)
    assert lead_s > judged(fixed, 8)[2]
    trees_found, trees_false, _ = judged(half_space_trees, 8)
    assert found >= trees_found
    assert false < trees_false


def test_the_alert_names_the_time_left_and_is_cleared_when_it_stops() -> None:
    forecast = Forecast()
    forecast.worker_joined("tcp://w", "w0", "h")
    raised: list[RaiseAlert] = []
    cleared: list[ClearAlert] = []
    for second in range(200):
        share = min(0.4 + 0.005 * second, 0.85)
        for action in forecast.telemetry_arrived("tcp://w", sample(second, share), float(second)):
            (raised if isinstance(action, RaiseAlert) else cleared).append(action)  # type: ignore[arg-type]
    (alert,), (end,) = raised, cleared
    assert alert.resource == "memory"
    assert alert.unit == "s"
    assert alert.value == pytest.approx(200 * (1.0 - 0.73), abs=10.0)
    assert alert.reason.startswith("memory of worker w0 will be full in 5")
    assert alert.value <= SOON_S
    assert end.alert == alert.alert
    assert end.lasted_s > 0.0


def test_a_disk_is_of_the_host_and_one_worker_speaks_for_it() -> None:
    forecast = Forecast()
    alerts: list[RaiseAlert] = []
    for worker in ("a", "b"):
        forecast.worker_joined(worker, worker, "h")
    for second in range(0, 60, 2):
        for worker in ("a", "b"):
            free = Telemetry(taken_at_s=second, host_disk_free_bytes=10**9 - 10**7 * second)
            actions = forecast.telemetry_arrived(worker, free, float(second))
            alerts += [action for action in actions if isinstance(action, RaiseAlert)]
    (alert,) = alerts
    assert (alert.resource, alert.worker) == ("disk", "a")
    assert alert.reason.startswith("disk of host h will be full in ")


def test_a_worker_that_leaves_takes_its_alert_with_it() -> None:
    forecast = Forecast()
    forecast.worker_joined("w", "w0", "h")
    for second in range(60):
        list(forecast.telemetry_arrived("w", sample(second, 0.5 + 0.008 * second), float(second)))
    assert [clear.reason for clear in forecast.worker_left("w", 60.0)] == ["worker w0 left"]
    assert list(forecast.worker_left("w", 61.0)) == []
    assert list(forecast.telemetry_arrived("w", sample(62, 0.9), 62.0)) == []


def test_too_little_is_no_trend() -> None:
    assert trend([(float(s), float(s)) for s in range(7)]) is None
    assert trend([(s / 10, float(s)) for s in range(20)]) is None


def test_a_worker_slows_down_against_its_past_and_its_peers() -> None:
    paces = Paces()
    usual = {"a": 1.0, "b": 1.1, "c": 2.6}
    for _ in range(20):
        assert paces.look(usual) == {}, "one that always was slow is no news"
    for _ in range(10):
        assert paces.look({worker: 3.0 * factor for worker, factor in usual.items()}) == {}, "all are slow"
    for look in range(5):
        slow = paces.look({**usual, "b": 4.4})
        assert set(slow) == ({"b"} if look >= IN_A_ROW - 1 else set())
    assert slow["b"] == pytest.approx(4.0, rel=0.3)
    assert paces.look(usual) == {}
