"""Which ready task goes to which worker, and when: each rule by the run that went wrong without it."""

from __future__ import annotations

import random
from bisect import insort
from typing import Any

import pytest

from scheduler_plugins.decide.placement import MOST_WAITING, WAITING_BYTES, Placement
from scheduler_plugins.decide.shelves import ANYWHERE, Line
from scheduler_plugins.decide.strategy import DEFAULT
from tests.support.placement_audit import audit
from tests.support.pools import Pool

LONG_S = 100.0


# -- depth: when a worker has room ------------------------------------------------------------------------------------


def test_a_long_task_waits_in_the_pool_while_all_threads_are_busy() -> None:
    """Once sent, it can go nowhere else when another worker is free first."""
    pool = Pool(1.0, 1.0)
    for i in range(3):
        pool.ready(f"t{i}", 10.0)
    assert pool.chosen() == [("t0", "w0"), ("t1", "w1")]
    pool.now_s += 9.0
    assert pool.chosen() == []
    pool.now_s += 1.0 - DEFAULT.horizon_s / 2
    assert [task for task, _ in pool.chosen()] == ["t2"]


def test_short_tasks_are_sent_ahead() -> None:
    """Else each thread is idle for a round trip after each task."""
    pool = Pool(1.0)
    for i in range(1000):
        pool.ready(f"t{i}", 0.001)
    ahead_s = 0.001 * len(pool.chosen())
    assert DEFAULT.horizon_s / 2 < ahead_s < 2 * DEFAULT.horizon_s


def test_tasks_of_no_length_are_not_sent_without_end() -> None:
    pool = Pool(1.0)
    for i in range(2000):
        pool.ready(f"t{i}", 0.0)
    assert len(pool.chosen()) <= MOST_WAITING + 1


def test_large_results_do_not_wait_on_a_worker() -> None:
    pool = Pool(1.0)
    for i in range(20):
        pool.ready(f"t{i}", 0.001, output_bytes=WAITING_BYTES / 4)
    assert 4 <= len(pool.chosen()) <= 7


def test_nothing_is_sent_ahead_to_where_nobody_knows_when_it_ends() -> None:
    pool = Pool(1.0)
    pool.ready("a", 0.01, is_known=False)
    pool.ready("b", 0.01, is_known=False)
    assert pool.chosen() == [("a", "w0")]


def test_nothing_long_is_sent_ahead_to_a_worker_that_has_hardly_run_any() -> None:
    """Its speed is a guess: a slow one would keep what it was sent for long."""
    pool = Pool()
    pool.join("new", tried=False)
    pool.ready("a", 1.0)
    pool.ready("b", 1.0)
    assert pool.chosen() == [("a", "new")]
    pool.now_s += 1.0 - DEFAULT.horizon_s / 2
    assert pool.chosen() == []


def test_the_pool_says_when_it_is_worth_asking_again() -> None:
    pool = Pool(1.0)
    pool.ready("a", 10.0)
    pool.ready("b", 10.0)
    pool.choose()
    at_s = pool.placement.wake_at_s()
    assert at_s == pytest.approx(pool.now_s + 10.0 - DEFAULT.horizon_s, abs=0.01)
    pool.now_s = at_s
    assert pool.chosen() == [("b", "w0")]
    assert pool.placement.wake_at_s() is None


def test_a_worker_is_woken_once_however_many_tasks_end() -> None:
    """One alarm for each end of a task would pile up until the first is due."""
    pool = Pool(1.0, threads=2)
    pool.ready("long", 1e5)
    pool.ready("longer", 2e5)
    pool.choose()
    for i in range(100):
        pool.ready(f"t{i}", 5e4)
        pool.choose()
        pool.placement.ended("longer", pool.now_s)
        pool.give("longer", "w0")
    assert len(pool.placement._alarms) <= 2


# -- order ------------------------------------------------------------------------------------------------------------


def test_dasks_order_where_no_path_is_critical() -> None:
    pool = Pool(1.0)
    pool.left_s = 1000.0
    for i in (3, 1, 2):
        pool.ready(f"t{i}", 10.0, order=i)
    assert pool.chosen() == [("t1", "w0")]


def test_a_long_chain_is_not_starved_by_wide_work() -> None:
    pool = Pool(1.0, 1.0)
    pool.left_s = 100.0
    for i in range(20):
        pool.ready(f"wide{i}", 2.0)
    pool.ready("chain", 2.0, rank_s=60.0)
    assert pool.rules() == {"chain": "critical", "wide0": "order"}


def test_the_longest_of_independent_tasks_do_not_begin_last() -> None:
    pool = Pool(1.0, 1.0)
    for i in range(4):
        pool.ready(f"short{i}", 1.0)
    pool.ready("long", 10.0)
    assert pool.choose()[0].task == "long"


def test_the_longest_of_those_that_nothing_waits_for_begin_long_before_the_end() -> None:
    """Eleven tasks of 3 s and much that is short: at 0.5 of what is left it is too late for them to end together."""
    pool = Pool(1.0, 1.0)
    pool.left_s = 100.0
    for name in ("long", "short"):
        pool.ready(name, 10.0 if name == "long" else 0.1, order=name == "long", is_last=True)
    assert pool.rules() == {"long": "longest", "short": "order"}


def test_what_something_waits_for_keeps_dasks_order_until_it_is_critical() -> None:
    """Dask's order is what saves memory."""
    pool = Pool(1.0, 1.0)
    pool.left_s = 100.0
    for name in ("long", "short"):
        pool.ready(name, 10.0 if name == "long" else 0.1, order=name == "long")
    assert pool.rules() == {"long": "order", "short": "order"}


def test_a_path_comes_before_a_longer_task_that_nothing_waits_for() -> None:
    pool = Pool(1.0)
    pool.left_s = 10.0
    pool.ready("alone", 4.0, is_last=True)
    pool.ready("path", 0.1, rank_s=6.0)
    assert pool.choose(1)[0].rule == "critical"


def test_a_short_path_is_not_critical_while_much_is_left() -> None:
    pool = Pool(1.0)
    pool.left_s = 10.0 / DEFAULT.critical * 2
    pool.ready("a", 1.0)
    pool.ready("b", 1.0, rank_s=10.0)
    assert pool.chosen(1) == [("a", "w0")]


def test_what_goes_on_with_something_comes_before_what_begins_something() -> None:
    """Else results of roots fill the memory, which nobody has use for yet."""
    pool = Pool(1.0)
    pool.left_s = 1000.0
    pool.ready("root", 10.0, order=1)
    pool.ready("next", 10.0, order=2, home=ANYWHERE)
    assert pool.chosen() == [("next", "w0")]


def test_where_many_inputs_are_on_their_way_nothing_new_begins() -> None:
    pool = Pool(1.0, threads=2)
    pool.left_s = 1000.0
    pool.ready("big", 1.0, output_bytes=2 * WAITING_BYTES, home=ANYWHERE, away_s=10.0)
    pool.ready("root", 1.0)
    assert pool.chosen() == [("big", "w0")]
    pool.ready("next", 1.0, home=ANYWHERE)
    assert pool.chosen() == [("next", "w0")]


# -- the user's priority ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["w0", ANYWHERE])
def test_the_users_priority_comes_before_what_lies_in_memory(home: str) -> None:
    pool = Pool(1.0)
    pool.left_s = 1000.0
    pool.ready("next", 10.0, level=0, home=home)
    pool.ready("wanted", 10.0, level=-1)
    assert pool.chosen() == [("wanted", "w0")]


def test_the_users_priority_comes_before_long_paths() -> None:
    pool = Pool(1.0)
    pool.ready("long", 10.0, rank_s=500.0, level=0)
    pool.ready("wanted", 10.0, level=-5)
    assert pool.chosen() == [("wanted", "w0")]


def test_the_users_priority_comes_before_probes() -> None:
    pool = Pool(1.0)
    pool.ready("unknown", 0.5, is_known=False, kind="f", level=1)
    pool.ready("wanted", 10.0, level=0)
    assert pool.chosen() == [("wanted", "w0")]
    pool.end("wanted")
    assert pool.rules() == {"unknown": "probe"}


def test_the_users_priority_comes_before_what_fills_a_slow_worker() -> None:
    pool = Pool(1.0, 10.0)
    pool.left_s = 300.0
    pool.ready("busy", LONG_S)
    pool.choose()
    pool.ready("low", 9.0, level=5)
    pool.ready("wanted", 8.0, level=0)
    pool.ready("other", LONG_S, level=0)
    assert [task for task, worker in pool.chosen() if worker == "w1"] == ["wanted"]


def test_what_the_user_wants_last_runs_where_nothing_else_suits() -> None:
    pool = Pool(1.0, 100.0)
    pool.left_s = 110.0
    pool.ready("busy", LONG_S)
    pool.choose()
    pool.ready("wanted", 50.0, level=0)
    pool.ready("low", 0.5, level=5)
    assert pool.chosen() == [("low", "w1")]


# -- probes -----------------------------------------------------------------------------------------------------------


def test_the_first_of_many_of_which_nothing_is_known_goes_first() -> None:
    pool = Pool(1.0)
    pool.ready("long", LONG_S)
    for i in range(10):
        pool.ready(f"f{i}", 0.5, is_known=False, kind="f")
    assert pool.rules() == {"f0": "probe"}


def test_one_is_enough() -> None:
    pool = Pool(1.0, 1.0)
    pool.ready("long", LONG_S)
    for i in range(10):
        pool.ready(f"f{i}", 0.5, is_known=False, kind="f")
    assert list(pool.rules().values()).count("probe") == 1


def test_one_that_was_cancelled_is_no_probe() -> None:
    pool = Pool(1.0)
    pool.ready("f0", 0.5, is_known=False, kind="f")
    pool.ready("g", 1.0)
    pool.placement.unready("f0")
    assert pool.rules() == {"g": "critical"}


# -- slow and fast workers --------------------------------------------------------------------------------------------


def test_a_slow_worker_leaves_a_task_that_the_fast_ones_do_sooner() -> None:
    """Ten times slower: 8 tasks of 1 s on 8 workers took 10 s instead of 2."""
    pool = Pool(*[1.0] * 7, 10.0)
    for i in range(8):
        pool.ready(f"t{i}", 1.0)
    assert len(pool.choose()) == 7
    assert pool.on("w7") == []


def test_a_slow_worker_takes_what_it_ends_before_the_fast_ones_are_through() -> None:
    pool = Pool(1.0, 10.0)
    for i in range(100):
        pool.ready(f"t{i}", 1.0)
    pool.choose()
    assert len(pool.on("w1")) == 1


def test_a_worker_hardly_slower_takes_part() -> None:
    pool = Pool(1.0, 1.1)
    pool.ready("a", 1.0)
    pool.ready("b", 1.0)
    assert {worker for _, worker in pool.chosen()} == {"w0", "w1"}


def test_the_fastest_come_first() -> None:
    pool = Pool(2.0, 1.0, 3.0, 0.5)
    pool.left_s = 1e6
    for i in range(4):
        pool.ready(f"t{i}", 10.0)
    assert [worker for _, worker in pool.chosen()] == ["w3", "w1", "w0", "w2"]


def test_many_that_decline_do_not_keep_equals_from_being_asked_later() -> None:
    """Those that declined are asked after the others the next time."""
    pool = Pool(1.0, *[20.0] * 12)
    pool.ready("busy", LONG_S)
    pool.choose()
    pool.ready("t", LONG_S)
    asked = set()
    for _ in range(4):
        group = next(iter(pool.placement._hungry.values()))
        asked |= set(list(group)[:4]) - {"w0"}
        assert pool.chosen() == []
    assert len(asked) == 12


def test_what_does_not_fit_on_the_fast_ones_is_left_to_them_only_for_a_while() -> None:
    """One that hung on the only fast worker is not given to it again: the slow one left it to that for ever."""
    pool = Pool(1.0, 20.0)
    pool.misfits.add(("t", "w0"))
    pool.ready("t", 1.0)
    assert pool.chosen() == []
    pool.now_s += 20.0
    pool.placement.reconsider()
    assert pool.chosen() == []
    pool.now_s += 30.0
    pool.placement.reconsider()
    assert pool.chosen() == [("t", "w1")]


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_a_task_stays_with_its_inputs() -> None:
    pool = Pool(1.0, 1.0)
    pool.ready("t", 1.0, home="w1", away_s=5.0)
    assert pool.chosen() == [("t", "w1")]


def test_a_task_leaves_its_inputs_where_it_is_done_sooner_elsewhere() -> None:
    """400 x 0.1 s with inputs on one worker took 7.6 s on eight."""
    pool = Pool(1.0, 1.0)
    for i in range(10):
        pool.ready(f"t{i}", 5.0, home="w0", away_s=0.5)
    pool.choose()
    assert (len(pool.on("w0")), len(pool.on("w1"))) == (1, 1)


def test_a_task_is_not_moved_when_it_would_be_done_sooner_at_home() -> None:
    pool = Pool(1.0, 1.0)
    pool.ready("a", 1.0, home="w0", away_s=3.0)
    pool.choose()
    pool.ready("b", 1.0, home="w0", away_s=3.0)
    assert pool.chosen() == []


def test_a_slow_worker_does_not_leave_a_task_to_those_for_whom_it_is_too_far_away() -> None:
    """It stood still: faster ones would do it sooner, they left it to where its inputs are."""
    pool = Pool(0.3, 4.0)
    pool.ready("t", 5.0, home="w1", away_s=15.0)
    assert pool.chosen() == [("t", "w1")]


def test_a_slow_worker_leaves_a_task_to_those_who_do_it_sooner_in_spite_of_the_transfer() -> None:
    pool = Pool(0.3, 4.0)
    pool.ready("t", 5.0, home="w1", away_s=2.0)
    assert pool.chosen() == [("t", "w0")]


def test_a_task_goes_elsewhere_while_its_home_may_have_none() -> None:
    pool = Pool(1.0, 1.0)
    pool.closed.add("w0")
    pool.ready("t", 1.0, home="w0", away_s=50.0)
    assert pool.chosen() == [("t", "w1")]


def test_inputs_are_fetched_while_the_worker_is_busy() -> None:
    pool = Pool(1.0)
    pool.ready("a", 1.5, home="w0")
    pool.choose()
    pool.ready("b", 1.0, home="w0", away_s=2.0)
    pool.homes["b"] = "half of it elsewhere"
    assert pool.rules() == {"b": "prefetch"}
    pool.ready("c", 1.0, home="w0", away_s=2.0)
    pool.homes["c"] = "half of it elsewhere"
    assert pool.chosen() == []  # one for each thread


def test_inputs_are_not_fetched_to_where_the_task_would_wait_for_long() -> None:
    """A task was bound to a worker for two minutes, behind one that had just begun."""
    pool = Pool(1.0)
    pool.ready("a", LONG_S, home="w0")
    pool.choose()
    pool.ready("b", 1.0, home="w0", away_s=2.0)
    pool.homes["b"] = "half of it elsewhere"
    assert pool.chosen() == []
    pool.now_s += LONG_S - 1.0
    pool.placement.look_again("w0")
    pool.placement._hunger(pool.placement.views["w0"])
    assert pool.rules() == {"b": "prefetch"}


def test_inputs_that_lie_elsewhere_are_fetched_while_the_worker_is_busy() -> None:
    """80 inputs of 10 MB lay on one worker, and each of the others ran a task, then fetched, then ran the next."""
    pool = Pool(1.0, 1.0)
    for i in range(20):
        pool.ready(f"t{i}", 0.2, home="w0", away_s=0.05)
    pool.choose()
    assert len(pool.on("w1")) == 1
    pool.now_s += 0.06  # its inputs are there, and it runs
    assert pool.rules() == {}
    pool.now_s += 0.1
    assert "prefetch" in pool.rules().values()
    assert len(pool.on("w1")) == 2
    audit(pool.placement)


def test_the_last_tasks_are_not_fetched_ahead() -> None:
    pool = Pool(1.0, 1.0)
    for i in range(5):
        pool.ready(f"t{i}", 0.2, home="w0", away_s=0.05)
    pool.choose()
    for _ in range(15):
        pool.now_s += 0.01
        pool.choose()
    assert len(pool.on("w1")) == 1


def test_a_worker_to_which_a_task_is_on_its_way_has_no_thread_to_spare() -> None:
    """A copy and a task that had fetched its inputs met on one thread, for two minutes."""
    pool = Pool(1.0)
    pool.ready("a", 1.0, home="elsewhere", away_s=2.0)
    pool.placement.reconsider()
    assert list(pool.placement.spare()) == ["w0"]
    pool.choose()
    pool.placement._hunger(pool.placement.views["w0"])
    assert list(pool.placement.spare()) == []


# -- workers that come and go -----------------------------------------------------------------------------------------


def test_what_a_worker_was_the_home_of_goes_anywhere_when_it_leaves() -> None:
    pool = Pool(1.0, 1.0)
    for i in range(5):
        pool.ready(f"t{i}", 10.0, home="w0", away_s=1e6)
    pool.leave("w0")
    audit(pool.placement)
    assert pool.chosen() == [("t0", "w1")]


def test_a_task_whose_home_is_not_there_goes_anywhere() -> None:
    pool = Pool(1.0)
    pool.ready("t", 1.0, home="gone", away_s=9.0)
    assert pool.chosen() == [("t", "w0")]


def test_a_worker_that_joins_twice_is_there_once() -> None:
    """One that was restarted may be back before anybody has noticed."""
    pool = Pool(1.0, 1.0)
    pool.ready("a", 10.0)
    pool.choose()
    pool.join("w0", 4.0)
    audit(pool.placement)
    assert pool.placement.ended("a", pool.now_s) is None


def test_what_a_worker_that_is_not_known_is_given_is_ready_no_more() -> None:
    pool = Pool(1.0)
    pool.ready("t", 1.0)
    pool.placement.given("t", "stranger", pool.now_s, pool.costs.__getitem__)
    assert "t" not in pool.placement
    audit(pool.placement)


def test_a_task_that_is_ready_again_with_other_inputs_is_there_once() -> None:
    pool = Pool(1.0, 1.0)
    pool.ready("t", 1.0, home="w0", away_s=9.0)
    pool.ready("t", 1.0, home="w1", away_s=9.0)
    audit(pool.placement)
    assert pool.chosen() == [("t", "w1")]


def test_paused_workers_do_not_keep_the_others_idle() -> None:
    """They counted among those that decline: with four of them, nobody else was asked."""
    pool = Pool(*[1.0] * 6)
    pool.closed |= {f"w{i}" for i in range(5)}
    for i in range(4):
        pool.ready(f"t{i}", 10.0)
    assert pool.chosen() == [("t0", "w5")]


def test_a_worker_that_goes_on_is_asked_at_the_next_look() -> None:
    pool = Pool(1.0)
    pool.closed.add("w0")
    pool.ready("t", 1.0)
    assert pool.chosen() == []
    pool.closed.clear()
    pool.placement.reconsider()
    assert pool.chosen() == [("t", "w0")]


def test_a_worker_whose_threads_are_all_lost_gets_nothing_until_one_is_found() -> None:
    pool = Pool(1.0)
    pool.placement.hold("w0", 1, pool.now_s)
    pool.ready("t", 1.0)
    assert pool.chosen() == []
    pool.placement.hold("w0", 0, pool.now_s)
    assert pool.chosen() == [("t", "w0")]


def test_a_task_that_leaves_its_thread_makes_room() -> None:
    """A task that waits for tasks it has submitted itself: on a cluster of such, nothing ever ended."""
    pool = Pool(1.0)
    pool.ready("outer", LONG_S, is_known=False)
    pool.choose()
    pool.ready("inner", 1.0, is_known=False)
    assert pool.chosen() == []
    pool.placement.seceded("outer", pool.now_s)
    audit(pool.placement)
    assert pool.chosen() == [("inner", "w0")]
    pool.end("outer")
    audit(pool.placement)


def test_a_task_that_does_not_fit_does_not_keep_others_from_the_worker() -> None:
    pool = Pool(1.0)
    pool.misfits.add(("a", "w0"))
    pool.ready("a", 1.0, rank_s=50.0)
    pool.ready("b", 1.0)
    assert pool.chosen() == [("b", "w0")]
    audit(pool.placement)
    pool.end("b")
    pool.misfits.clear()
    assert pool.chosen() == [("a", "w0")]


def test_what_never_fits_does_not_pile_up() -> None:
    """It is put aside and put back at each look, ten times a second, for as long as it lasts."""
    pool = Pool(1.0)
    for i in range(3):
        pool.ready(f"t{i}", 1.0)
        pool.misfits.add((f"t{i}", "w0"))
    for _ in range(1000):
        pool.placement.reconsider()
        assert pool.chosen() == []
    (shelf,) = pool.placement._shelves.values()
    assert len(shelf._order) + sum(map(len, shelf.lines.values())) < 200
    pool.misfits.clear()
    pool.placement.reconsider()
    assert pool.chosen() == [("t0", "w0")]
    audit(pool.placement)


def test_nothing_is_chosen_where_nothing_fits() -> None:
    pool = Pool(1.0, 1.0)
    for i in range(30):
        pool.ready(f"t{i}", 1.0, kind="f", is_known=False)
        pool.misfits |= {(f"t{i}", "w0"), (f"t{i}", "w1")}
    assert pool.chosen() == []
    audit(pool.placement)
    pool.misfits.clear()
    pool.placement.reconsider()
    assert len(pool.chosen()) == 2


# -- several at a time ------------------------------------------------------------------------------------------------


def busy(*factors: float, threads: int = 1) -> Pool:
    """A pool whose workers run one short task on each thread."""
    pool = Pool(*factors, threads=threads)
    for i in range(threads * len(factors)):
        pool.ready(f"first{i}", 0.001, order=-100 + i)
    pool.choose()
    return pool


def batches(pool: Pool) -> list[list[str]]:
    """What is given now, as it is given together."""
    made = []
    for choice in pool.placement.choices(pool.now_s):
        made.append([choice.task, *choice.more])
        for task in made[-1]:
            pool.give(task, choice.worker)
    return made


def test_short_tasks_are_given_several_at_a_time_in_order() -> None:
    pool = busy(1.0)
    for i in range(1000):
        pool.ready(f"t{i}", 0.001)
    (together,) = batches(pool)
    assert together == [f"t{i}" for i in range(len(together))]
    assert DEFAULT.horizon_s / 2 < 0.001 * len(together) < DEFAULT.horizon_s
    audit(pool.placement)


@pytest.mark.parametrize("factors", [(1.0,), (1.0, 1.0, 1.1), (1.0, 4.0)])
@pytest.mark.parametrize("output_bytes", [0.0, 5e6])
def test_several_at_a_time_are_the_same_that_would_be_given_one_by_one(
    monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...], output_bytes: float
) -> None:
    """No worker gets a task more than it has room for, or another."""

    def given() -> dict[str, int]:
        pool = busy(*factors)
        for i in range(1000):
            pool.ready(f"t{i}", 0.0005 + i % 3 * 1e-5, output_bytes=output_bytes)
        chosen = pool.chosen()
        assert [task for task, _ in chosen] == [f"t{i}" for i in range(len(chosen))]
        audit(pool.placement)
        return {worker: len(pool.on(worker)) for worker in pool.placement.views}

    together = given()
    monkeypatch.setattr(Placement, "_with_more", lambda self, choice, *_: choice)
    assert together == given()


def test_the_last_short_tasks_are_shared_out() -> None:
    pool = busy(1.0, 1.0)
    for i in range(8):
        pool.ready(f"t{i}", 0.001)
    assert max(map(len, batches(pool))) <= 2
    assert len(pool.on("w0")) == len(pool.on("w1"))


def test_what_is_not_known_to_be_short_is_given_one_by_one() -> None:
    for pool, seconds, is_known in [(busy(1.0), 0.004, True), (busy(1.0), 0.001, False), (busy(6.0), 0.001, True)]:
        for i in range(100):
            pool.ready(f"t{i}", seconds, is_known=is_known)
        assert all(len(together) == 1 for together in batches(pool))


def test_short_tasks_that_lie_elsewhere_come_several_at_a_time() -> None:
    """One fetch brings the inputs of all; 2,000 tasks of 10 ms were given one by one, each with a fetch of its own."""
    pool = Pool(1.0, 1.0)
    pool.ready("first", 0.01)
    pool.ready("second", 0.01)
    pool.choose()
    for i in range(100):
        pool.ready(f"t{i}", 0.01, home="w0", away_s=0.005)
    together = max(batches(pool), key=len)
    assert len(together) > 5
    assert set(together) <= set(pool.on("w1"))
    audit(pool.placement)


@pytest.mark.parametrize(("seconds", "away_s", "tasks"), [(0.01, 0.0004, 100), (0.06, 0.01, 100), (0.01, 0.005, 3)])
def test_what_hardly_fetches_or_is_long_or_the_last_comes_one_by_one(seconds: float, away_s: float, tasks: int) -> None:
    pool = Pool(1.0, 1.0)
    for i in range(tasks):
        pool.ready(f"t{i}", seconds, home="w0", away_s=away_s)
    assert all(len(together) == 1 for together in batches(pool))


def test_what_does_not_fit_ends_what_goes_together() -> None:
    pool = busy(1.0)
    for i in range(100):
        pool.ready(f"t{i}", 0.001)
    pool.misfits.add(("t3", "w0"))
    given = batches(pool)
    assert given[0] == ["t0", "t1", "t2"]
    assert "t3" in pool.placement
    audit(pool.placement)


def test_what_the_user_wants_first_ends_what_goes_together() -> None:
    pool = busy(1.0)
    for i in range(100):
        pool.ready(f"t{i}", 0.001, level=i // 3, order=i)
    assert batches(pool)[0] == ["t0", "t1", "t2"]


def test_a_shelf_keeps_the_order_of_what_comes_in_any() -> None:
    rng, line, sorted_ = random.Random(0), Line(), []
    for serial in range(2000):
        if sorted_ and rng.random() < 0.4:
            assert line.head() == sorted_.pop(0)
            line.drop()
        else:
            priority = (0, serial if rng.random() < 0.8 else rng.randrange(2000))
            item: Any = (priority, serial, None)
            line.put(item)
            insort(sorted_, item)
        assert line.head() == (sorted_[0] if sorted_ else None)
        assert sorted(line) == sorted_
        row = list(line.in_a_row(5))
        assert row == sorted_[: len(row)]


# -- what was learned -------------------------------------------------------------------------------------------------


def test_a_path_that_turns_out_longer_goes_first() -> None:
    pool = Pool(1.0)
    pool.ready("a", 1.0, rank_s=2.0)
    pool.ready("b", 1.0, rank_s=2.0)
    pool.placement.rank("b", 50.0, pool.costs.__getitem__)
    audit(pool.placement)
    assert pool.chosen(1) == [("b", "w0")]


def test_a_path_that_is_about_as_long_stays_where_it_is() -> None:
    pool = Pool(1.0)
    pool.ready("a", 1.0, rank_s=2.0)
    entry = pool.placement._entries["a"]
    pool.placement.rank("a", 2.01, pool.costs.__getitem__)
    pool.placement.rank("never seen", 2.01, pool.costs.__getitem__)
    assert pool.placement._entries["a"] is entry


def test_a_worker_that_turns_out_slow_is_asked_after_the_others() -> None:
    pool = Pool(1.0, 1.0)
    pool.placement.set_speed("w0", 4.0)
    pool.placement.set_speed("stranger", 4.0)
    audit(pool.placement)
    pool.left_s = 1e6
    pool.ready("a", 10.0)
    assert pool.chosen() == [("a", "w1")]


def test_a_worker_of_which_little_is_known_takes_part() -> None:
    """With a guess of its speed nobody would find out that it is as fast as the others."""
    pool = Pool(1.0, 4.0)
    pool.ready("a", 1.0)
    pool.ready("b", 1.0)
    assert {worker for _, worker in pool.chosen()} == {"w0"}
    pool.placement.set_speed("w1", 4.0, doubt=8.0)
    assert pool.chosen() == [("b", "w1")]


def test_one_after_the_other_is_sent_what_many_would_fetch_from_one_worker() -> None:
    """Eleven idle workers each fetched 12 MB from the same one for a task of 2 ms, and what mattered came last."""
    pool = Pool(*[1.0] * 12)
    for i in range(24):
        pool.ready(f"part{i}", 0.02, home="w0", away_s=0.05)
    moved = [worker for _, worker in pool.chosen() if worker != "w0"]
    assert 1 <= len(moved) <= 6
