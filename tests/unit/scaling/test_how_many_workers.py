"""How many workers there should be: enough at once, never too few for what runs, and never to and fro."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.scale import (
    KEEP_S,
    LEAST_S,
    PATIENCE,
    PRIOR_START_S,
    Demand,
    Holding,
    Scale,
    leaving,
    useful,
)

TARGET_S = 5.0
UNKNOWN_S = 0.5
"""Dask's `unknown-task-duration`."""
GB = 1e9


def tasks(count: int, seconds: float, **more: float) -> Demand:
    """Independent tasks, none of which has begun, and nobody to do them."""
    return replace(Demand(ready=count, unfinished=count, work_s=count * seconds, workers=0, busy=0), **more)  # type: ignore[arg-type]


def nothing(workers: int, **more: float) -> Demand:
    return replace(Demand(0, 0, 0.0, workers=workers, busy=0), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("demand", "workers"),
    [
        (tasks(8, 10.0), 8),
        (tasks(8, UNKNOWN_S), 4),
        (tasks(4, 0.5), 2),
        (tasks(1, 1000.0), 1),
        (tasks(1, 0.0), 1),
        (tasks(1000, 0.001), 1),
        (tasks(100, 1.0, threads=4.0), 25),
        (nothing(0), 0),
        (nothing(0, results_bytes=10.0), 1),
        (nothing(3, results_bytes=3 * GB, limit_bytes=1 * GB), 5),
    ],
)
def test_workers_are_asked_for_that_will_work_as_long_as_they_take_to_start(demand: Demand, workers: int) -> None:
    assert Scale().target(demand, TARGET_S, 0.0) == workers


def test_workers_that_start_slowly_are_asked_for_as_daks_target_duration_says() -> None:
    scale = Scale()
    assert scale.target(tasks(1, 1.0), TARGET_S, 0.0) == 1
    scale.joined(120.0)
    assert scale.start_s == 120.0
    assert scale.target(tasks(100, 1.0), TARGET_S, 121.0) == 20


def test_a_worker_that_nobody_asked_for_teaches_nothing() -> None:
    scale = Scale()
    scale.joined(1000.0)
    assert scale.start_s == PRIOR_START_S


def test_a_worker_is_kept_idle_for_as_long_as_one_takes_to_start() -> None:
    scale = Scale()
    scale.target(tasks(8, 10.0), TARGET_S, 0.0)
    assert scale.target(nothing(8), TARGET_S, 0.9 * KEEP_S) == 8
    assert scale.target(nothing(8), TARGET_S, 1.1 * KEEP_S) == 0
    scale.target(tasks(8, 10.0), TARGET_S, 10.0)
    scale.joined(30.0)
    assert scale.start_s == 20.0
    assert scale.target(nothing(8), TARGET_S, 29.0) == 8
    assert scale.target(nothing(8), TARGET_S, 31.0) == 0


def test_at_a_barrier_workers_are_kept_for_the_tasks_behind_it_but_not_for_ever() -> None:
    scale = Scale()
    behind = Demand(ready=1, unfinished=6, work_s=20.0, workers=8, busy=1)
    scale.target(tasks(100, 10.0), TARGET_S, 0.0)
    assert scale.target(tasks(8, 10.0, workers=8, busy=8), TARGET_S, 5.0) == 8
    assert scale.target(behind, TARGET_S, 9.0) == 6, "as many as there are tasks"
    assert scale.target(behind, TARGET_S, 5.0 + PATIENCE * PRIOR_START_S + 0.1) == 1


def test_the_last_long_task_does_not_keep_the_others() -> None:
    scale = Scale()
    scale.target(tasks(8, 10.0), TARGET_S, 0.0)
    for now_s in (5.0, 7.0):
        target = scale.target(Demand(ready=1, unfinished=1, work_s=3600.0, workers=8, busy=1), TARGET_S, now_s)
    assert target == 1


DURATIONS = st.lists(st.floats(0.01, 20.0), min_size=1, max_size=40)


@given(
    durations=DURATIONS,
    guesses=st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=30),
    start_s=st.floats(0.0, 8.0),
    threads=st.integers(1, 4),
    most=st.integers(1, 16),
)
def test_one_load_changes_the_direction_once_however_estimates_jump(
    durations: list[float], guesses: list[float], start_s: float, threads: int, most: int
) -> None:
    """A small cluster that starts workers late and closes them at once; what is known of tasks changes every second."""
    scale, waiting = Scale(), list(durations)
    coming: list[float] = []
    workers: list[list[float]] = []  # each: what is left of the tasks that it runs
    sizes = [0]
    step_s = 0.5
    for tick in range(400):
        now_s = tick * step_s
        for _ in [each for each in coming if each <= now_s]:
            workers.append([])
            scale.joined(now_s)
        coming = [each for each in coming if each > now_s]
        for running in workers:
            running[:] = [left - step_s for left in running if left > step_s]
            while waiting and len(running) < threads:
                running.append(waiting.pop())
        ready = len(waiting) + sum(map(len, workers))
        demand = Demand(
            ready=ready,
            unfinished=ready,
            work_s=ready * guesses[tick % len(guesses)],
            workers=len(workers),
            busy=sum(1 for running in workers if running),
            threads=float(threads),
        )
        target = min(scale.target(demand, TARGET_S, now_s), most)
        assert target >= min(demand.busy, most)
        missing = target - len(workers) - len(coming)
        coming += [now_s + start_s] * missing
        del coming[len(coming) + min(missing, 0) :]
        idle = [running for running in workers if not running]
        for running in idle[: max(len(workers) - target, 0)]:
            workers.remove(running)
        sizes.append(len(workers))
        if not ready and not workers:
            break
    assert not ready, "all is done"
    assert not workers, "and all have gone"
    ways = [after > before for before, after in pairwise(sizes) if after != before]
    assert sum(a != b for a, b in pairwise(ways)) <= 1, sizes


@given(
    st.lists(
        st.builds(
            lambda ready, waiting, busy, work_s: Demand(ready + busy, ready + waiting + busy, work_s, busy + 2, busy),
            st.integers(0, 50),
            st.integers(0, 50),
            st.integers(0, 20),
            st.floats(0.0, 1e6),
        ),
        max_size=30,
    )
)
def test_never_fewer_than_work(demands: list[Demand]) -> None:
    scale = Scale()
    for second, demand in enumerate(demands):
        assert scale.target(demand, TARGET_S, float(second)) >= demand.busy


def test_results_that_fill_the_memory_keep_their_workers() -> None:
    full = nothing(4, results_bytes=1.8 * GB, limit_bytes=1 * GB)
    assert useful(full) == 4
    scale = Scale()
    for second in range(10):
        assert scale.target(full, TARGET_S, float(second)) == 4


def worker(
    name: str, unique_bytes: float = 0.0, *, is_idle: bool = True, free_bytes: float = GB, of: str = ""
) -> Holding:
    return Holding(name, of or name, is_idle, unique_bytes, free_bytes)


def test_idle_workers_with_the_fewest_results_go_first() -> None:
    holdings = [worker("a", 5.0), worker("b", is_idle=False), worker("c", 2.0), worker("d")]
    assert leaving(holdings, 2) == ["d", "c"]
    assert leaving(holdings, 4) == ["d", "c", "a"], "never one that works"


def test_the_last_worker_stays_with_the_results() -> None:
    assert leaving([worker("a", 1.0), worker("b", 1.0)], 2) == ["a"]
    assert leaving([worker("a"), worker("b")], 2) == ["a", "b"]


def test_nobody_goes_whose_results_find_no_room() -> None:
    assert leaving([worker("a", 3 * GB), worker("b", 4 * GB)], 1) == []


def test_groups_go_whole_or_stay() -> None:
    host = [worker(f"h{i}", of="h") for i in range(3)]
    assert leaving([*host, worker("x", 1.0)], 2) == ["x"]
    assert set(leaving([*host, worker("x", 1.0)], 3)) == {"h0", "h1", "h2"}
    assert leaving([*host[:2], worker("h2", of="h", is_idle=False)], 3) == []


def test_asking_often_is_no_harm() -> None:
    scale = Scale()
    for tick in range(1000):
        assert scale.target(tasks(8, 10.0), TARGET_S, tick * 0.001) == 8
    assert LEAST_S <= PRIOR_START_S
