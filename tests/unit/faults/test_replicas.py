"""Second copies are a bet on deaths: none in calm weather, what is costly to redo in a storm."""

from __future__ import annotations

from scheduler_plugins.decide.replicas import FORGET_S, Hazard, is_worth_a_copy, least_share_s, redo_s

MB = 10**6
FAST = 100 * MB


def calm(workers: int = 10, seconds: float = 600.0) -> Hazard:
    hazard = Hazard()
    hazard.passed(seconds, workers)
    return hazard


def test_nothing_ordinary_is_copied_while_nobody_dies() -> None:
    for hazard in (Hazard(), calm(), calm(workers=1000)):
        assert not is_worth_a_copy(1.0, 1000, hazard.rate, FAST, is_wanted=True)
        assert not is_worth_a_copy(1.0, 8, hazard.rate, FAST, is_wanted=False)


def test_hours_of_work_in_a_small_result_are_copied_even_then() -> None:
    hazard = Hazard()
    hazard.passed(60.0, 4)
    assert is_worth_a_copy(100 * 3600.0, 1 * MB, hazard.rate, FAST, is_wanted=False)


def test_after_a_death_in_a_small_young_cluster_tasks_of_a_tenth_of_a_second_are_copied() -> None:
    hazard = Hazard()
    hazard.passed(3.0, 4)
    hazard.died()
    assert is_worth_a_copy(0.1, 1 * MB, hazard.rate, FAST, is_wanted=False)
    assert not is_worth_a_copy(0.1, 1000 * MB, hazard.rate, FAST, is_wanted=False), "sooner made than moved"
    assert not is_worth_a_copy(0.001, 8, hazard.rate, FAST, is_wanted=False)


def test_one_death_among_a_thousand_workers_is_no_storm() -> None:
    hazard = calm(workers=1000)
    hazard.died()
    assert not is_worth_a_copy(0.5, 1 * MB, hazard.rate, FAST, is_wanted=False)


def test_a_storm_is_forgotten() -> None:
    hazard = calm(workers=4, seconds=60.0)
    for _ in range(5):
        hazard.died()
    stormy = hazard.rate
    hazard.passed(10 * FORGET_S, 4)
    assert hazard.rate < stormy / 1000


def test_what_stands_for_less_than_the_least_is_worth_no_copy_in_any_weather() -> None:
    stormy = calm()
    stormy.died()
    for hazard in (Hazard(), calm(workers=1000), stormy):
        least_s = least_share_s(hazard.rate)
        assert not is_worth_a_copy(0.999 * least_s, 0, hazard.rate, FAST, is_wanted=True)
        assert is_worth_a_copy(1.001 * least_s, 0, hazard.rate, FAST, is_wanted=True)
        assert not is_worth_a_copy(1.001 * least_s, 0, hazard.rate, FAST, is_wanted=False)


def test_work_that_led_to_a_result_counts_by_shares_and_adds_up() -> None:
    first = redo_s(8.0, [])
    halves = [redo_s(1.0, [(first, 2)]) for _ in range(2)]
    assert redo_s(1.0, [(half, 1) for half in halves]) == 8.0 + 2 * 1.0 + 1.0


def test_a_bandwidth_that_is_not_known_copies_nothing() -> None:
    assert not is_worth_a_copy(1.0, 1 * MB, 1.0, 0.0, is_wanted=True)
