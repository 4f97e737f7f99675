"""What a worker has been given: counted right after any number of events, and when it will be free."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.balance import PATIENCE_S, overdue
from scheduler_plugins.decide.load import FETCH_S, PER_TASK_S, Given, Load
from tests.support.placement_audit import audit_load


def task(name: str, p50_s: float = 1.0, *, at_s: float = 0.0, transfer_s: float = 0.0, **more: object) -> Given:
    details = {"p99_s": 2 * p50_s, "is_known": True, "nbytes": 100.0, **more}
    return Given(name, p50_s, sent_at_s=at_s, transfer_s=transfer_s, **details)  # type: ignore[arg-type]


def loaded(threads: int, *tasks: Given) -> Load:
    load = Load(threads)
    for each in tasks:
        load.give(each)
    return load


def test_as_many_run_as_there_are_threads_and_the_others_wait() -> None:
    load = loaded(2, task("a"), task("b"), task("c"))
    assert (list(load.running), list(load.waiting), load.free_threads) == (["a", "b"], ["c"], 0)
    assert load.ahead_bytes == 100.0


def test_the_first_that_waits_runs_when_a_thread_is_free() -> None:
    load = loaded(1, task("a"), task("b"), task("c"))
    load.end("a", 3.0)
    assert list(load.running) == ["b"]
    assert load.running["b"].started_at_s == 3.0
    assert list(load.waiting) == ["c"]


def test_what_is_taken_away_before_it_runs_frees_no_thread() -> None:
    load = loaded(1, task("a"), task("b"), task("c"))
    load.end("b", 3.0)
    assert (list(load.running), list(load.waiting)) == (["a"], ["c"])


def test_what_the_worker_does_not_have_ends_without_a_trace() -> None:
    load = loaded(1, task("a"))
    assert load.end("b", 1.0) is None
    assert len(load) == 1


def test_a_task_waits_for_its_inputs_without_a_thread() -> None:
    load = loaded(1, task("far", transfer_s=5.0), task("near"))
    assert (list(load.fetching), list(load.running)) == (["far"], ["near"])
    load.settle(4.9)
    assert list(load.fetching) == ["far"]
    load.settle(5.0)
    assert (list(load.fetching), list(load.waiting)) == ([], ["far"])


def test_what_was_fetched_runs_from_when_it_was_there() -> None:
    load = loaded(1, task("far", transfer_s=5.0))
    load.settle(9.0)
    assert load.running["far"].started_at_s == 5.0
    assert load.ahead_bytes == 0.0


def test_a_transfer_of_a_moment_is_none() -> None:
    assert list(loaded(1, task("a", transfer_s=FETCH_S)).running) == ["a"]


def test_threads_that_are_lost_are_not_free() -> None:
    load = Load(2)
    load.hold(2, 0.0)
    load.give(task("a"))
    assert load.free_threads == 0
    assert list(load.waiting) == ["a"]
    assert load.free_in_s(1.0) == inf


def test_all_that_wait_run_when_several_threads_are_found_again() -> None:
    """With one task begun per task that ends, a thread would stay empty for good."""
    load = Load(3)
    load.hold(2, 0.0)
    for name in "abcd":
        load.give(task(name))
    load.hold(0, 7.0)
    assert list(load.running) == ["a", "b", "c"]
    assert load.running["c"].started_at_s == 7.0
    audit_load(load)


def test_when_a_thread_will_be_free() -> None:
    load = loaded(2, task("a", 4.0), task("b", 10.0))
    assert load.free_in_s(0.0) == 4.0
    assert load.free_in_s(3.0) == 1.0
    load.give(task("c", 6.0))
    assert load.free_in_s(0.0) == pytest.approx((4 + 10 + 6 + PER_TASK_S) / 2)
    load.end("a", 2.0)
    load.end("b", 2.0)
    assert load.free_in_s(2.0) == 0.0


def test_a_task_that_outlives_its_guess_may_take_as_long_again() -> None:
    each = task("a", 1.0)
    each.started_at_s = 0.0
    assert each.remaining_s(0.5) == 0.5
    assert each.remaining_s(1.5) == 0.25  # half of what is left until nearly all of its kind have ended
    assert each.remaining_s(30.0) == 30.0


def test_nobody_knows_when_a_task_ends_of_whose_function_nothing_is_known() -> None:
    assert loaded(1, task("a", is_known=False)).free_in_s(100.0) == inf


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.floats(0, 9)), max_size=80))
def test_counts_are_right_after_any_events(threads: int, events: list[tuple[int, int, float]]) -> None:
    load, now_s = Load(threads), 0.0
    for kind, number, seconds in events:
        now_s += seconds / 10
        known = number in load.tasks()
        if kind == 0 and not known:
            transfer_s = seconds if number % 3 == 0 else 0.0
            load.give(task(number, seconds, at_s=now_s, transfer_s=transfer_s, nbytes=seconds))  # type: ignore[arg-type]
        elif kind == 1:
            assert (load.end(number, now_s) is not None) == known
        elif kind == 2:
            load.settle(now_s)
        else:
            load.hold(number % (threads + 1), now_s)
        # Threads may be lost under tasks that run: whose they are is not known.
        audit_load(load)
        assert load.free_in_s(now_s) >= 0.0


def test_sums_do_not_drift() -> None:
    """A worker that is never empty is never set right by chance."""
    rng, load = random.Random(1), Load(1)
    load.give(task("first", 1e9))
    load.give(task("second", 0.1, nbytes=1e9))
    names: list[int] = []
    for number in range(100_000):
        if names and (len(names) > 50 or rng.random() < 0.5):
            load.end(names.pop(rng.randrange(len(names))), 0.0)
        else:
            load.give(task(number, rng.choice([1e-4, 1.0, 1e4]), nbytes=rng.choice([28.0, 1e9])))  # type: ignore[arg-type]
            names.append(number)
        assert load.waiting_s > 0.0
    audit_load(load)


def test_what_waits_no_longer_than_planned_stays() -> None:
    load = loaded(1, task("a", 1.0), task("b"))
    assert overdue(load, 0.95, planned_s=0.03) == []


def test_what_waits_behind_a_task_that_overruns_is_asked_back() -> None:
    load = loaded(1, task("a", 0.05), task("b"), task("c"))
    assert overdue(load, 30.0, planned_s=0.03) == ["b", "c"]


def test_tasks_that_were_sent_together_wait_for_each_other() -> None:
    """Short tasks are sent by the dozen: that they wait for one another is no surprise."""
    load = loaded(1, *[task(f"t{i}", 0.1) for i in range(50)])
    assert overdue(load, 0.05, planned_s=0.03) == []


def test_what_waits_behind_lost_threads_is_asked_back() -> None:
    load = loaded(1, task("a"))
    load.hold(1, 0.0)
    load.end("a", 1.0)
    load.give(task("b"))
    assert overdue(load, 1.0, planned_s=1.0 + PATIENCE_S) == ["b"]
