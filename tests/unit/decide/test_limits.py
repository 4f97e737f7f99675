"""Limits of tasks: what they may be, who has run too long, how long it rests, where it may run next."""

from __future__ import annotations

from random import Random

import pytest

from scheduler_plugins.decide.limits import Limit, Limits, read
from swarm.errors import SettingsError

A, B, C = "a", "b", "c"
ONE_SECOND = Limit(timeout_s=1.0, retries=3, backoff_s=1.0)


class Where(dict[str, str]):
    """Task → worker; and how long tasks have run there."""

    ran: dict[str, float]

    def __init__(self, **where: str) -> None:
        super().__init__(where)
        self.ran = {}

    def ran_s(self, task: str, worker: str, sent_at_s: float) -> float:
        return self.ran[task]


def limits(default: Limit = ONE_SECOND) -> Limits:
    return Limits(default, Random(1))


def too_long(watch: Limits, now_s: float, where: Where) -> list[tuple[str, str, float]]:
    return watch.too_long(now_s, where.get, where.ran_s)


# -- what users write ------------------------------------------------------------------------------------------------


def test_annotations_override_the_settings_one_by_one() -> None:
    default = Limit(60.0, 2, 0.5)
    assert read({}, default) == default
    assert read({"swarm_timeout": "30s", "other": 1}, default) == Limit(30.0, 2, 0.5)
    assert read({"swarm_timeout": None, "swarm_retries": 0, "swarm_backoff": "2m"}, default) == Limit(
        None, 0, 120.0, rests_after_errors=True
    )


@pytest.mark.parametrize("value", ["soon", -1, 0, True, float("nan"), float("inf"), [30], "30 days"])
def test_a_timeout_that_makes_no_sense_is_refused_and_named(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^swarm_timeout = .* must be a number from 0.05 to 2592000"):
        read({"swarm_timeout": value}, ONE_SECOND)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read({"swarm_timeout": "x", "swarm_retries": 1.5, "swarm_backoff": -1}, ONE_SECOND)
    assert str(caught.value).count("must be") == 3


# -- who has run too long --------------------------------------------------------------------------------------------


def test_a_task_is_too_long_when_it_has_run_longer_than_its_timeout() -> None:
    watch, where = limits(), Where(t=A)
    watch.given("t", A, 0.0)
    where.ran["t"] = 0.9
    assert too_long(watch, 0.9, where) == []
    where.ran["t"] = 1.05
    assert too_long(watch, 1.05, where) == [("t", A, 1.05)]
    assert too_long(watch, 1.1, where) == []  # it is told once


def test_what_it_waits_for_a_thread_does_not_count() -> None:
    watch, where = limits(), Where(t=A)
    watch.given("t", A, 0.0)
    where.ran["t"] = 0.0
    assert all(too_long(watch, now_s / 10, where) == [] for now_s in range(100))
    where.ran["t"] = 1.0
    assert too_long(watch, 10.5, where) == [("t", A, 1.0)]  # and it is looked at often enough


def test_without_a_timeout_nothing_is_watched() -> None:
    watch, where = limits(Limit(None)), Where(t=A, own=A)
    watch.set_limit("own", ONE_SECOND)
    for task in where:
        watch.given(task, A, 0.0)
        where.ran[task] = 1e6
    assert too_long(watch, 1e6, where) == [("own", A, 1e6)]


def test_a_task_that_was_sent_again_has_its_time_again() -> None:
    watch, where = limits(), Where(t=A)
    watch.given("t", A, 0.0)
    watch.given("t", A, 0.9)  # its worker gave it back, and got it again
    where.ran["t"] = 0.2
    assert too_long(watch, 1.1, where) == []
    where.ran["t"] = 1.0
    assert too_long(watch, 1.9, where) == [("t", A, 1.0)]


def test_a_task_that_goes_on_as_its_copy_has_its_time_again() -> None:
    watch, where = limits(), Where(t=B)
    watch.given("t", A, 0.0)
    where.ran["t"] = 0.3
    assert too_long(watch, 1.1, where) == []
    where.ran["t"] = 1.3
    assert too_long(watch, 2.2, where) == [("t", B, 1.3)]


def test_to_read_the_annotations_again_while_it_runs_changes_nothing() -> None:
    """Dask tells of a task once more with each graph that needs it."""
    watch, where = limits(Limit()), Where(t=A)
    watch.set_limit("t", ONE_SECOND)
    watch.given("t", A, 0.0)
    watch.set_limit("t", ONE_SECOND)
    where.ran["t"] = 1.0
    assert too_long(watch, 1.0, where) == [("t", A, 1.0)]


def test_a_task_that_is_over_or_nowhere_is_not_too_long() -> None:
    watch, where = limits(), Where()
    watch.given("over", A, 0.0)
    watch.given("away", A, 0.0)
    watch.forget("over")
    assert too_long(watch, 5.0, where) == []


# -- what follows ----------------------------------------------------------------------------------------------------


def test_rests_double_and_differ_by_chance() -> None:
    rests_s = []
    for seed in range(20):
        watch = Limits(ONE_SECOND, Random(seed))
        watch.given("t", A, 0.0)
        rests_s.append([watch.failed("t", A, 1.0, 0.0) for _ in range(3)])
        assert watch.failed("t", A, 1.0, 0.0) is None  # that was the last
        assert [attempt.worker for attempt in watch.attempts("t")] == [A] * 4
    for turn, columns in enumerate(zip(*rests_s, strict=True)):
        assert all(rest_s is not None and 0.75 * 2**turn <= rest_s <= 1.25 * 2**turn for rest_s in columns)
        assert len(set(columns)) == 20


def test_it_rests_until_then_and_is_let_go_once() -> None:
    watch = limits()
    watch.given("t", A, 0.0)
    rest_s = watch.failed("t", A, 1.0, 10.0)
    assert rest_s is not None
    assert watch.rests("t", 10.0 + 0.99 * rest_s)
    assert watch.rested(10.0 + 0.99 * rest_s) == []
    assert not watch.rests("t", 10.01 + rest_s)
    assert watch.rested(10.01 + rest_s) == ["t"]
    assert watch.rested(20.0) == []


def test_after_an_error_it_rests_where_its_annotation_says_so() -> None:
    watch = limits(Limit())
    assert watch.erred("unknown", 0.0) == 0.0
    watch.set_limit("t", read({"swarm_retries": 2}, Limit()))
    assert watch.erred("t", 0.0) == 0.0
    assert not watch.rests("t", 0.0)
    watch.set_limit("t", read({"swarm_backoff": "2s"}, Limit()))
    assert 1.5 <= watch.erred("t", 10.0) <= 2.5
    assert watch.rests("t", 11.4)
    assert 3.0 <= watch.erred("t", 20.0) <= 5.0
    assert watch.rested(26.0) == ["t", "t"]
    watch.ended("t")
    assert 1.5 <= watch.erred("t", 30.0) <= 2.5, "it got through, and begins anew"


def test_a_task_that_was_cancelled_while_it_rested_is_not_let_go() -> None:
    watch = limits()
    watch.given("t", A, 0.0)
    watch.failed("t", A, 1.0, 0.0)
    watch.forget("t")
    assert watch.rested(100.0) == []
    assert not watch.rests("t", 0.0)


def test_it_goes_to_a_worker_on_which_it_has_not_hung() -> None:
    watch = limits()
    watch.given("t", A, 0.0)
    watch.failed("t", A, 1.0, 0.0)
    allowed = [worker for worker in (A, B, C) if watch.may_run("t", worker, {A, B, C})]
    assert allowed == [B, C]
    assert watch.may_run("another", A, {A, B, C})


def test_when_it_has_hung_everywhere_any_but_the_last_will_do() -> None:
    watch = limits()
    for worker in (A, B):
        watch.given("t", worker, 0.0)
        watch.failed("t", worker, 1.0, 0.0)
    assert watch.may_run("t", A, {A, B})
    assert not watch.may_run("t", B, {A, B})
    assert watch.may_run("t", B, {B})  # else it would wait for ever


def test_a_worker_that_left_counts_no_more() -> None:
    watch = limits()
    for worker in (A, B):
        watch.given("t", worker, 0.0)
        watch.failed("t", worker, 1.0, 0.0)
    watch.worker_left(A)
    assert watch.may_run("t", A, {A, B})
    assert not watch.may_run("t", B, {A, B})


def test_a_task_that_got_through_begins_anew_when_it_is_needed_again() -> None:
    """Its result was lost with a worker: that it hung once before is no reason to fail sooner."""
    watch = limits(Limit())
    watch.set_limit("t", ONE_SECOND)
    for _ in range(2):
        watch.given("t", A, 0.0)
        for _ in range(3):
            assert watch.failed("t", A, 1.0, 0.0) is not None
        watch.ended("t")
        assert watch.may_run("t", A, {A, B})
        assert watch.limit("t") == ONE_SECOND
