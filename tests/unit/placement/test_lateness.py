"""Who is heard of late is given less, as if it were slow; and is trusted again after a while."""

from __future__ import annotations

from scheduler_plugins.decide.lateness import FADE_S, LEAST_S, Lateness


def heard(lateness: Lateness, **late_s: float) -> None:
    for _ in range(30):
        for worker, seconds in late_s.items():
            lateness.reported(worker, seconds)
    lateness.look(1.0)


def test_all_alike_are_not_late_however_late_they_are() -> None:
    """The scheduler itself is behind: that tells nothing of a worker."""
    lateness = Lateness()
    heard(lateness, a=0.9, b=0.9, c=0.95)
    assert not lateness.excess_s


def test_the_one_with_the_blocked_loop_is_late() -> None:
    lateness = Lateness()
    heard(lateness, a=0.002, b=0.003, c=0.4)
    assert set(lateness.excess_s) == {"c"}
    assert 0.35 < lateness.excess_s["c"] < 0.4


def test_a_clock_that_is_ahead_is_not_early() -> None:
    lateness = Lateness()
    heard(lateness, a=-5.0, b=-5.0, c=LEAST_S / 2)
    assert not lateness.excess_s


def test_who_shows_nothing_is_trusted_again_by_and_by() -> None:
    lateness = Lateness()
    heard(lateness, a=0.0, b=0.0, c=0.8)
    for turn in range(2, 8):
        lateness.reported("a", 0.0)
        lateness.reported("b", 0.0)
        lateness.look(turn * (FADE_S + 0.1))
    assert not lateness.excess_s


def test_who_left_is_forgotten() -> None:
    lateness = Lateness()
    heard(lateness, a=0.0, b=0.0, c=0.8)
    lateness.left("c")
    lateness.look(2.0)
    assert not lateness.excess_s
    Lateness().look(0.0)
