"""Which running tasks are copied: each rule with the story of what goes wrong without it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_plugins.decide.speculate import (
    STUCK_SHARE,
    Budget,
    Copy,
    Estimate,
    Execution,
    Offer,
    Rules,
    Running,
    choose,
    limit_s,
    remaining,
)

STEADY = Estimate(1.0, 1.15, 1.3, samples=50)
"""Of a task that takes a second, give or take a tenth."""
PLENTY = Budget(threads=100, live=0, copied_s=0.0, worked_s=1000.0)


def running(
    key: str = "a",
    *,
    for_s: float,
    estimate: Estimate = STEADY,
    suspect: bool = False,
    copy_for_s: float | None = None,
    copies: int = 0,
    tail_s: float = 0.0,
    stuck_share: float = STUCK_SHARE,
) -> Running:
    """A task at the time 100."""
    copy = None if copy_for_s is None else Execution("w1", 100.0 - copy_for_s, estimate)
    original = Execution("w0", 100.0 - for_s, estimate, suspect)
    return Running(key, original, copy, copies, tail_s, stuck_share=stuck_share)


def offering(*workers: str, estimate: Estimate = STEADY, transfer_s: float = 0.0) -> list[Offer]:
    return [Offer(worker, estimate, transfer_s) for worker in workers or ("w2",)]


def chosen(
    *tasks: Running,
    offers: list[Offer] | None = None,
    budget: Budget = PLENTY,
    backlog_s: float = 0.0,
    rules: Rules = Rules(),  # noqa: B008 — it cannot change
) -> list[Copy]:
    idle = offering() if offers is None else offers
    return choose(100.0, tasks, lambda task: idle, budget, backlog_s, rules)


# -- when ----------------------------------------------------------------------------------------------------------


def test_a_task_that_has_outlived_its_p99_by_far_is_copied() -> None:
    (copy,) = chosen(running(for_s=3.0))
    assert (copy.key, copy.source, copy.target, copy.replaces) == ("a", "w0", "w2", None)
    assert copy.duration_s == pytest.approx(1.15)
    assert copy.reason == (
        "it has run for 3 s on w0, 99 % end within 1.3 s (50 seen): about 3 s more, "
        "and on w2 1.15 s, 0 s of it for its inputs"
    )


def test_a_task_within_its_p99_is_left_alone() -> None:
    """Else one in ten of all tasks would run twice, and the budget be gone when it is needed."""
    assert not chosen(running(for_s=1.25))


def test_just_beyond_the_p99_it_is_as_likely_to_be_about_to_end() -> None:
    """One in a hundred healthy tasks is so slow; a copy of it would end long after it."""
    assert not chosen(running(for_s=1.34))
    assert chosen(running(for_s=1.6))


def test_short_tasks_are_not_copied_before_anybody_can_know_that_they_began() -> None:
    quick = Estimate(0.01, 0.012, 0.015, samples=500)
    assert not chosen(running(for_s=0.4, estimate=quick), offers=offering(estimate=quick))
    assert chosen(running(for_s=0.6, estimate=quick), offers=offering(estimate=quick))


def test_a_function_of_which_nothing_has_finished_is_not_copied() -> None:
    """Dask's guess for it is half a second; a job of ten-minute tasks would all run twice."""
    guess = Estimate(0.5, 0.6, 0.7, samples=0)
    assert not chosen(running(for_s=60.0, estimate=guess), offers=offering(estimate=guess))


def test_few_samples_make_it_wait_longer() -> None:
    """After one task of 1 s, one of 2 s is no surprise."""
    once = STEADY._replace(samples=1)
    assert not chosen(running(for_s=2.5, estimate=once))
    assert chosen(running(for_s=2.7, estimate=once))


def test_on_a_suspected_worker_also_what_is_not_late_and_not_known() -> None:
    """Whatever it would have taken: its worker may never report it."""
    guess = Estimate(0.5, 0.6, 0.7, samples=0)
    (copy,) = chosen(running(for_s=0.6, estimate=guess, suspect=True), offers=offering(estimate=guess))
    assert "which is suspected: it may never report it" in copy.reason
    assert not chosen(running(for_s=0.4, suspect=True))


# -- where ---------------------------------------------------------------------------------------------------------


def test_not_where_it_would_end_later() -> None:
    """LATE: a copy on a slow node is worse than none."""
    slow = Estimate(4.0, 4.6, 5.2, samples=50)
    assert not chosen(running(for_s=3.0), offers=offering(estimate=slow))


def test_not_where_its_inputs_are_too_far_away() -> None:
    assert not chosen(running(for_s=3.0), offers=offering(transfer_s=2.0))


def test_where_it_ends_first() -> None:
    offers = [*offering("far", transfer_s=0.5), *offering("near"), *offering("slow", estimate=Estimate(2, 2.3, 3, 9))]
    (copy,) = chosen(running(for_s=3.0), offers=offers)
    assert copy.target == "near"


def test_never_where_it_runs_already() -> None:
    assert not chosen(running(for_s=3.0), offers=offering("w0"))


def test_each_idle_thread_is_used_once() -> None:
    copies = chosen(running("a", for_s=3.0), running("b", for_s=4.0), offers=offering("w2", "w3"))
    assert [copy.key for copy in copies] == ["b", "a"]
    assert {copy.target for copy in copies} == {"w2", "w3"}


# -- which first ---------------------------------------------------------------------------------------------------


def test_what_most_work_waits_for_goes_first() -> None:
    """A leaf that is late costs its own time; one in a chain all that follows it."""
    leaf, link = running("leaf", for_s=4.0), running("link", for_s=3.0, tail_s=20.0)
    assert [copy.key for copy in chosen(leaf, link)] == ["link"]


def test_where_other_work_waits_only_what_the_end_depends_on() -> None:
    """An idle thread is free; one that other work could use is not."""
    assert not chosen(running(for_s=4.0, tail_s=1.0), backlog_s=10.0)
    assert chosen(running(for_s=4.0, tail_s=7.0), backlog_s=10.0)


def test_where_other_work_waits_only_if_the_copy_saves_work() -> None:
    """Mantri: the original must still take twice what the copy takes."""
    assert not chosen(running(for_s=2.0, tail_s=50.0), backlog_s=10.0)
    assert chosen(running(for_s=2.0, tail_s=50.0))


# -- how many ------------------------------------------------------------------------------------------------------


def test_a_run_of_eight_tasks_may_copy_its_one_straggler() -> None:
    spent = Budget(threads=8, live=0, copied_s=0.0, worked_s=9.0)
    assert chosen(running(for_s=2.0), budget=spent)


def test_beyond_the_budget_nothing_is_copied() -> None:
    """All workers become slow at once, by a shared disk: copies of everything would make it worse."""
    spent = Budget(threads=100, live=0, copied_s=51.0, worked_s=1000.0)
    assert not chosen(running(for_s=3.0), budget=spent)
    assert chosen(running(for_s=3.0), budget=spent, rules=Rules(budget_ratio=0.1))


def test_copies_of_one_plan_share_the_budget() -> None:
    late = [running(f"t{i}", for_s=3.0) for i in range(50)]
    workers = offering(*(f"idle{i}" for i in range(50)))
    copies = chosen(*late, offers=workers, budget=Budget(threads=1000, live=0, copied_s=0.0, worked_s=200.0))
    assert len(copies) == 9  # of 1.15 s each; the last one overdraws the 10 s


def test_no_more_than_a_tenth_of_the_threads_runs_copies() -> None:
    """After a quiet day the budget is large: a hiccup of the network must not copy everything."""
    late = [running(f"t{i}", for_s=3.0) for i in range(50)]
    workers = offering(*(f"idle{i}" for i in range(50)))
    rich = Budget(threads=80, live=3, copied_s=0.0, worked_s=1e6)
    assert len(chosen(*late, offers=workers, budget=rich)) == 5


# -- a second copy -------------------------------------------------------------------------------------------------


def test_one_copy_at_a_time() -> None:
    assert not chosen(running(for_s=3.0, copy_for_s=1.0, copies=1))


def test_a_copy_that_overruns_as_well_is_replaced() -> None:
    (copy,) = chosen(running(for_s=5.0, copy_for_s=2.0, copies=1))
    assert (copy.target, copy.replaces) == ("w2", "w1")
    assert "so has its copy, on w1, for 2 s" in copy.reason


def test_a_replacement_needs_no_further_thread_of_the_cap() -> None:
    full = Budget(threads=10, live=1, copied_s=0.0, worked_s=1000.0)
    assert chosen(running(for_s=5.0, copy_for_s=2.0, copies=1), budget=full)
    assert not chosen(running(for_s=5.0), budget=full)


def test_a_replacement_must_beat_the_copy_too() -> None:
    near_its_end = running(for_s=50.0, copy_for_s=1.36, copies=1)
    assert not chosen(near_its_end)


def test_what_two_workers_could_not_do_a_third_will_not_either() -> None:
    assert not chosen(running(for_s=50.0, copy_for_s=40.0, copies=2))


# -- the estimate --------------------------------------------------------------------------------------------------


def test_what_is_expected_to_remain_falls_until_the_p50_and_grows_after_the_p99() -> None:
    def left_s(for_s: float) -> float:
        return remaining(100.0, Execution("w0", 100.0 - for_s, STEADY))

    assert left_s(0.0) == pytest.approx(1.0, rel=0.02)
    assert left_s(0.9) < 0.2
    assert left_s(1.3) == pytest.approx(0.65, rel=0.05)
    assert left_s(3.0) == pytest.approx(3.0, rel=1e-6)


def test_of_functions_that_vary_much_more_is_borne() -> None:
    varied = Estimate(1.0, 3.6, 10.0, samples=200)
    assert not chosen(running(for_s=6.0, estimate=varied), offers=offering(estimate=varied))
    assert chosen(running(for_s=11.0, estimate=varied), offers=offering(estimate=varied))


STRANGE = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1.0, math.nextafter(1, 2), 1e-300, 1e300]),
)


@settings(max_examples=500)
@given(
    since_s=STRANGE,
    p50_s=STRANGE,
    p90_s=STRANGE,
    p99_s=STRANGE,
    tail_s=STRANGE,
    worked_s=STRANGE,
    samples=st.integers(0, 3),
)
def test_whatever_the_numbers_are_it_answers(
    since_s: float, p50_s: float, p90_s: float, p99_s: float, tail_s: float, worked_s: float, samples: int
) -> None:
    """Clocks jump, and estimates may be nonsense: this runs on the scheduler's loop."""
    estimate = Estimate(p50_s, p90_s, p99_s, samples)
    task = Running("a", Execution("w0", since_s, estimate), None, 0, tail_s)
    budget = PLENTY._replace(worked_s=worked_s)
    copies = choose(100.0, [task], lambda _: [Offer("w2", estimate)], budget)
    assert all(math.isfinite(copy.duration_s) for copy in copies)


def test_what_runs_on_a_slow_worker_is_copied_when_nothing_else_is_to_be_done() -> None:
    """A task of 26 s and all that hung on it ran on a worker at a tenth of the speed, while seven others were idle."""
    there = Estimate(26.0, 50.0, 90.0, samples=1)
    here = Estimate(260.0, 500.0, 900.0, samples=1)
    task = running(for_s=1.0, estimate=here)._replace(slowness=10.0)
    (copy,) = chosen(task, offers=offering(estimate=there))
    assert "10 times slower" in copy.reason
    assert not chosen(task, offers=offering(estimate=there), backlog_s=1.0), "others wait for the thread"
    assert not chosen(task._replace(slowness=1.5), offers=offering(estimate=there)), "it is not slow"
    almost = running(for_s=215.0, estimate=here)._replace(slowness=10.0)
    assert not chosen(almost, offers=offering(estimate=there)), "it will soon be done"


def test_so_is_what_nobody_knows_if_the_worker_is_much_slower() -> None:
    guess = Estimate(120.0, 430.0, 1200.0, samples=0)
    there = Estimate(12.0, 43.0, 120.0, samples=0)
    assert chosen(running(for_s=60.0, estimate=guess)._replace(slowness=10.0), offers=offering(estimate=there))
    there = Estimate(40.0, 150.0, 400.0, samples=0)
    assert not chosen(running(for_s=60.0, estimate=guess)._replace(slowness=3.0), offers=offering(estimate=there))


# -- advice --------------------------------------------------------------------------------------------------------

WIDE = Estimate(1.0, 3.5, 10.0, samples=50)
"""Of a task whose duration nobody can tell."""


def test_where_many_are_known_to_be_stuck_a_copy_comes_sooner() -> None:
    assert not chosen(running(for_s=7.0, estimate=WIDE), offers=offering(estimate=WIDE))
    (copy,) = chosen(running(for_s=7.0, estimate=WIDE, stuck_share=0.1), offers=offering(estimate=WIDE))
    assert copy.target == "w2"


def test_where_slow_tasks_just_do_more_a_copy_comes_later() -> None:
    assert chosen(running(for_s=11.0, estimate=WIDE), offers=offering(estimate=WIDE))
    assert not chosen(running(for_s=11.0, estimate=WIDE, stuck_share=0.002), offers=offering(estimate=WIDE))
    assert chosen(running(for_s=30.0, estimate=WIDE, stuck_share=0.002), offers=offering(estimate=WIDE))


@pytest.mark.parametrize("estimate", [STEADY, WIDE])
def test_the_usual_share_is_what_the_p99_stands_for(estimate: Estimate) -> None:
    assert limit_s(estimate, STUCK_SHARE) == estimate.p99_s == pytest.approx(limit_s(estimate, 0.01 + 1e-9), rel=1e-4)
    assert limit_s(estimate, 0.1) < estimate.p99_s < limit_s(estimate, 0.002)


def test_a_duration_that_never_differs_has_one_limit() -> None:
    assert limit_s(Estimate(1.0, 1.0, 1.0, 50), 0.1) == 1.0
