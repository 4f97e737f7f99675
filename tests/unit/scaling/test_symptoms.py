"""Signs that a machine is ill: errors that its peers do not have, bits that its GPU loses, heat that rises."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import exp

import pytest

from scheduler_plugins.decide.forecast import Forecast
from scheduler_plugins.decide.symptoms import CORRECTED_MANY, CORRECTED_S, LEAST_PEERS, WINDOW_S, Errors, Wear, tail
from swarm.protocol import ClearAlert, RaiseAlert, Telemetry

WORKERS = [f"w{n}" for n in range(8)]
ILL = "w3"
SINCE_S, LENGTH_S = 400.0, 900.0
End = tuple[float, str, str, bool]
"""At, worker, function, whether it raised."""


def stream(rng: random.Random, raises: Callable[[float, str, str, random.Random], bool]) -> list[End]:
    """About two thousand tasks of three functions, on workers as they come."""
    ends, at_s = [], 0.0
    while at_s < LENGTH_S:
        at_s += rng.expovariate(2.5)
        worker, function = rng.choice(WORKERS), rng.choice(("load", "fit", "score"))
        ends.append((at_s, worker, function, raises(at_s, worker, function, rng)))
    return ends


def well(rng: random.Random) -> list[End]:
    """Every function has errors of its own."""
    rates = {function: rng.choice((0.0, 0.01, 0.05, 0.3)) for function in ("load", "fit", "score")}
    return stream(rng, lambda at_s, worker, function, rng: rng.random() < rates[function])


def bad_release(rng: random.Random) -> list[End]:
    """From one moment on a function raises nearly always, wherever it runs."""
    return stream(rng, lambda at_s, worker, function, rng: function == "fit" and at_s > SINCE_S and rng.random() < 0.9)


def bad_inputs(rng: random.Random) -> list[End]:
    """Now and then a file is broken; three to eight tasks on it raise, half of the time all where the file lies."""
    ends, left, place = [], 0, ""
    for at_s, worker, function, _ in stream(rng, lambda *_: False):
        if not left and rng.random() < 0.005:
            left, place = rng.randint(3, 8), rng.choice((worker, ""))
        is_bad = left > 0 and function == "load"
        left -= is_bad
        ends.append((at_s, place or worker if is_bad else worker, function, is_bad))
    return ends


def own_function(rng: random.Random) -> list[End]:
    """One worker runs what nobody else does, and it raises."""
    ends = stream(rng, lambda *_: False)
    mine = [(at_s, w, "only here", rng.random() < 0.5) for at_s, w, *_ in ends if w == ILL]
    return sorted([*mine, *(end for end in ends if end[1] != ILL)])


def ill(rng: random.Random) -> list[End]:
    """One worker begins to raise: a fifth to all of its tasks."""
    rate, usual = rng.choice((0.2, 0.5, 1.0)), rng.choice((0.0, 0.01, 0.03))
    return stream(
        rng, lambda at_s, worker, _, rng: rng.random() < (rate if worker == ILL and at_s > SINCE_S else usual)
    )


def alarms(ends: list[End]) -> dict[str, float]:
    """Worker → when it was first called ill; looked at every 3 s, as on a scheduler."""
    errors, found, look_s = Errors(), dict[str, float](), 0.0
    for at_s, worker, function, raised in ends:
        errors.ended(worker, function, is_error=raised, at_s=at_s)
        if at_s >= look_s:
            look_s = at_s + 3.0
            for each in errors.look(at_s):
                found.setdefault(each, at_s)
    return found


SEEDS = 40
Make = Callable[[random.Random], list[End]]


@pytest.mark.parametrize(("make", "most"), [(well, 0.0), (bad_release, 0.0), (own_function, 0.0), (bad_inputs, 0.25)])
def test_errors_that_are_not_the_workers_raise_few_alarms(make: Make, most: float) -> None:
    found = [alarms(make(random.Random(f"{make.__name__}{seed}"))) for seed in range(SEEDS)]
    share = sum(map(bool, found)) / SEEDS
    print(make.__name__, share)
    print(make.__name__, share)
    assert share <= most


def test_a_worker_that_becomes_ill_is_found_and_nobody_else() -> None:
    found = [alarms(ill(random.Random(f"ill{seed}"))) for seed in range(SEEDS)]
    late = sorted(each[ILL] - SINCE_S for each in found)
    print("ill", late)
    print("ill", late)
    assert all(set(each) == {ILL} for each in found)
    assert min(late) > 0.0
    assert late[SEEDS // 2] < 90.0


def test_it_is_over_when_the_errors_are() -> None:
    errors = Errors()
    for n in range(400):
        errors.ended(WORKERS[n % 8], "load", is_error=n % 8 == 3, at_s=0.1 * n)
    assert set(errors.look(40.0)) == {ILL}
    for n in range(4000):
        errors.ended(WORKERS[n % 8], "load", is_error=False, at_s=40.0 + 0.2 * n)
    assert errors.look(840.0) == {}
    assert errors.look(840.0 + 3 * WINDOW_S) == {}


def test_without_peers_there_is_no_evidence() -> None:
    errors = Errors()
    for n in range(LEAST_PEERS - 1):
        errors.ended("other", "load", is_error=False, at_s=0.1 * n)
    for n in range(50):
        errors.ended("w", "load", is_error=True, at_s=2.0 + 0.1 * n)
    assert errors.look(8.0) == {}
    errors.ended("other", "load", is_error=False, at_s=8.0)
    assert errors.look(8.0)["w"][0] == 50


def test_the_tail_is_that_of_poisson() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count, expected in ((1, 0.01), (5, 0.3), (20, 15.0), (100, 2.0), (300, 280.0)):
        assert tail(count, expected) == pytest.approx(stats.poisson.sf(count - 1, expected), rel=1e-9)


# -- what ECC counts ---------------------------------------------------------------------------------------------------


def counted(corrected: int | None, uncorrected: int | None, at_s: float = 0.0) -> Telemetry:
    return Telemetry(at_s, accelerator_ecc_corrected=corrected, accelerator_ecc_uncorrected=uncorrected)


def watching(*workers: str) -> Wear:
    wear = Wear()
    for worker in workers:
        wear.worker_joined(worker, worker, "h")
    return wear


def test_what_ecc_could_not_correct_is_told_at_once_and_once() -> None:
    wear = watching("a", "b")
    told = []
    for at_s, lost in enumerate((7, 7, 8, 9)):
        for worker in ("a", "b"):
            told += list(wear.telemetry_arrived(worker, counted(1000, lost), float(at_s)))
    (alert,) = told
    assert (alert.worker, alert.resource, alert.value) == ("a", "accelerator", 1.0)
    assert alert.reason == "memory of a GPU of host h: 1 errors that ECC could not correct"
    (end,) = wear.worker_left("a", 10.0)
    assert isinstance(end, ClearAlert)
    assert (end.alert, end.lasted_s) == (alert.alert, 8.0)
    assert list(wear.worker_left("b", 10.0)) == []


def test_a_storm_of_corrected_errors_is_told_single_ones_are_not() -> None:
    wear = watching("a")
    rare = [list(wear.telemetry_arrived("a", counted(n, 0), n * CORRECTED_S / 4)) for n in range(50)]
    assert not any(rare)
    storm = [list(wear.telemetry_arrived("a", counted(50 + 2 * n, 0), 50 * CORRECTED_S + n)) for n in range(10)]
    assert [len(each) for each in storm].index(1) == CORRECTED_MANY / 2


def test_absent_counters_and_a_new_driver_say_nothing() -> None:
    wear = watching("a")
    samples = [counted(None, None), counted(500, 3), counted(None, None), counted(0, 0), counted(1, 0)]
    assert not any(list(wear.telemetry_arrived("a", each, 1.0)) for each in samples)
    assert not list(wear.telemetry_arrived("stranger", counted(0, 9), 1.0))


# -- heat --------------------------------------------------------------------------------------------------------------


def heats(top: float, rng: random.Random, pace_s: float = 120.0) -> list[float]:
    """Sensors tell whole degrees, and what is heated settles."""
    return [float(round(40.0 + (top - 40.0) * (1.0 - exp(-s / pace_s)) + rng.gauss(0.0, 0.4))) for s in range(900)]


def too_hot_at(series: list[float], limit: float = 85.0) -> int | None:
    forecast = Forecast(celsius=limit)
    forecast.worker_joined("w", "w0", "h")
    for second, celsius in enumerate(series):
        sample = Telemetry(float(second), host_temperature_celsius=celsius)
        if any(isinstance(each, RaiseAlert) for each in forecast.telemetry_arrived("w", sample, float(second))):
            return second
    return None


def test_a_host_that_gets_too_hot_is_told_before_it_is() -> None:
    leads = []
    for seed in range(SEEDS):
        series = heats(random.Random(seed).uniform(100.0, 130.0), random.Random(seed))
        at, reached = too_hot_at(series), next(s for s, celsius in enumerate(series) if celsius >= 85.0)
        leads.append(reached - at if at is not None else 0)
    assert min(leads) > 0
    assert sorted(leads)[SEEDS // 2] >= 10


def test_a_host_that_settles_below_the_limit_is_rarely_called_too_hot() -> None:
    called = [too_hot_at(heats(random.Random(seed).uniform(50.0, 82.0), random.Random(seed))) for seed in range(SEEDS)]
    print("heat", sum(at is not None for at in called) / SEEDS)
    assert sum(at is not None for at in called) <= 0.15 * SEEDS


def test_the_alert_on_heat_names_the_host_and_the_time() -> None:
    forecast = Forecast(celsius=85.0)
    forecast.worker_joined("w", "w0", "h")
    told = []
    for second in range(60):
        sample = Telemetry(float(second), host_temperature_celsius=60.0 + 0.4 * second)
        told += list(forecast.telemetry_arrived("w", sample, float(second)))
    (alert,) = told
    assert alert.resource == "thermal"
    assert alert.reason.startswith("host h will be too hot in ")
    assert "left_celsius" in alert.inputs
