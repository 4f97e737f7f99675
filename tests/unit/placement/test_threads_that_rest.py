"""Workers of a hot host are given less, and what lies there goes to others."""

from __future__ import annotations

import pytest

from scheduler_plugins.decide.balance import overdue
from scheduler_plugins.decide.shelves import ROOTS
from tests.support.placement_audit import audit
from tests.support.pools import NOW_S, Pool


def test_no_more_run_than_may() -> None:
    pool = Pool(1.0, threads=4)
    pool.placement.rest("w0", 2, NOW_S)
    for i in range(9):
        pool.ready(f"t{i}", 1.0)
    assert len(pool.chosen()) == 2
    pool.end("t0")
    assert len(pool.chosen()) == 1
    audit(pool.placement)
    pool.placement.rest("w0", 0, NOW_S)
    assert len(pool.chosen()) == 2
    audit(pool.placement)


def test_nothing_waits_there_for_a_thread_that_would_begin_it_at_once() -> None:
    pool = Pool(1.0, threads=2)
    pool.placement.rest("w0", 1, NOW_S)
    for i in range(100):
        pool.ready(f"t{i}", 0.001, home="w0" if i % 2 else ROOTS)
    assert len(pool.chosen()) == 1


def test_nor_do_tasks_come_in_company_whose_inputs_have_to_be_fetched() -> None:
    pool = Pool(1.0, 1.0, threads=4)
    for i in range(100):
        pool.ready(f"t{i}", 0.01, home="w0", away_s=0.01)
    for worker in ("w0", "w1"):
        pool.placement.rest(worker, 3, NOW_S)
    assert sorted(worker for _, worker in pool.chosen()) == ["w0", "w1"]


def test_what_runs_ends_before_more_is_given() -> None:
    pool = Pool(1.0, threads=4)
    for i in range(6):
        pool.ready(f"t{i}", 1.0 + i)
    given = [task for task, _ in pool.chosen()]
    assert sorted(given) == ["t2", "t3", "t4", "t5"]
    pool.placement.rest("w0", 2, NOW_S)
    load = pool.placement.views["w0"].load
    assert load.free_in_s(NOW_S) == pytest.approx(5.0), "three of the four have to end first"
    for done in ("t2", "t3"):
        pool.end(done)
        assert pool.chosen() == []
    pool.end("t4")
    assert len(pool.chosen()) == 1


def test_a_worker_that_may_run_nothing_leaves_its_tasks_to_others_at_once() -> None:
    pool = Pool(1.0, 1.0)
    for i in range(4):
        pool.ready(f"t{i}", 1.0, home="w0", away_s=0.2)
    pool.placement.rest("w0", 1, NOW_S)
    assert [worker for _, worker in pool.chosen()] == ["w1"]
    audit(pool.placement)


def test_what_waits_there_is_asked_back() -> None:
    pool = Pool(1.0, threads=2)
    for i in range(40):
        pool.ready(f"t{i}", 0.01)
    given = len(pool.chosen())
    load = pool.placement.views["w0"].load
    waiting = given - len(load.running)
    assert waiting > 0
    assert not overdue(load, NOW_S, pool.placement.planned_s)
    pool.placement.rest("w0", 2, NOW_S)
    assert len(overdue(load, NOW_S, pool.placement.planned_s)) == waiting


def test_lost_threads_and_resting_ones_are_not_added_up() -> None:
    pool = Pool(1.0, threads=4)
    pool.placement.rest("w0", 2, NOW_S)
    pool.placement.hold("w0", 1, NOW_S)
    assert pool.placement.views["w0"].load.free_threads == 2
    pool.placement.hold("w0", 3, NOW_S)
    pool.placement.rest("w0", 0, NOW_S)
    assert pool.placement.views["w0"].load.free_threads == 1
    audit(pool.placement)


def test_a_cluster_that_is_hot_all_over_has_no_speed_and_no_division() -> None:
    pool = Pool(1.0, 0.3, 3.0, threads=3)
    for worker in ("w0", "w1", "w2"):
        pool.placement.rest(worker, 3, NOW_S)
    pool.ready("t")
    assert pool.chosen() == []
    assert pool.placement.backlog_s() == 0.0
    audit(pool.placement)
