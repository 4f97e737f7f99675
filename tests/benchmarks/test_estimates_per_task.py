"""What estimates cost the scheduler's event loop for each task, and the memory of tasks the worker's.

As for the cost model, of each call the shortest time of several rounds counts.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Worker
from distributed.scheduler import TaskState
from pytest_benchmark.fixture import BenchmarkFixture

from scheduler_plugins.io.models import Models
from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask.estimates import SLICE_S, Estimates
from swarm.agents.watch.task_memory import PERIOD_S, ProcessMemory, TaskMemory
from tests.support.scheduler_tasks import Tasks, details

BUDGET_S = 15e-6
"""Of the median task: read its features, predict, ask again, learn, forget."""
FACTOR_BUDGET_S = 1e-6
LOOP_BUDGET_S = 2e-3
TASKS, ROUNDS, WORKERS = 2000, 7, 8
PARTS = ("of_first", "of_again", "factor", "finished", "forget", "all")


def work(*args: Any, **kwargs: Any) -> None:
    """A function that is never called."""


def without_arguments(tasks: Tasks, rng: random.Random, root: TaskState) -> TaskState:
    return tasks.task(work)


def a_number(tasks: Tasks, rng: random.Random, root: TaskState) -> TaskState:
    return tasks.task(work, rng.randint(1, 100))


def numbers_and_an_input(tasks: Tasks, rng: random.Random, root: TaskState) -> TaskState:
    return tasks.task(work, rng.randint(1, 100), inputs=[root], k=3)


def one_round(make: Callable[[Tasks, random.Random, TaskState], TaskState]) -> list[tuple[float, ...]]:
    tasks, rng, clock = Tasks(), random.Random(0), time.perf_counter
    estimates = Estimates(tasks.scheduler, Costs(random.Random(0)))
    workers = [tasks.worker(f"tcp://10.0.0.{i}:1") for i in range(WORKERS)]
    root = tasks.task(work, prefix="root", nbytes=10_000)
    made = [make(tasks, rng, root) for _ in range(TASKS)]
    said = [details(math.exp(rng.gauss(0, 0.1)), peak_bytes=10**6) for _ in made]
    times = []
    gc.collect()
    gc.disable()
    try:
        for i, task in enumerate(made):
            at_s = [clock()]
            estimates.of(task)
            at_s.append(clock())
            estimates.of(task)
            at_s.append(clock())
            for ws in workers:
                estimates.factor(task, ws)
            at_s.append(clock())
            estimates.finished(task, workers[i % WORKERS].address, said[i])
            at_s.append(clock())
            estimates.forget(task)
            at_s.append(clock())
            first, again, factors, finished, forget = (b - a for a, b in pairwise(at_s))
            times.append((first, again, factors / WORKERS, finished, forget, first + again + finished + forget))
    finally:
        gc.enable()
    return times


@pytest.mark.parametrize("make", [without_arguments, a_number, numbers_and_an_input])
def test_estimates_of_a_task(benchmark: BenchmarkFixture, make: Any) -> None:
    def go() -> list[list[float]]:
        rounds = [one_round(make) for _ in range(ROUNDS)]
        best = [tuple(map(min, *same)) for same in zip(*rounds, strict=True)]
        return [sorted(column) for column in zip(*best, strict=True)]

    columns = dict(zip(PARTS, benchmark.pedantic(go, rounds=1), strict=True))
    benchmark.extra_info |= {f"{part}_median_us": 1e6 * statistics.median(times) for part, times in columns.items()}
    benchmark.extra_info["all_p99_us"] = 1e6 * columns["all"][int(0.99 * TASKS)]
    assert statistics.median(columns["all"]) < BUDGET_S
    assert statistics.median(columns["factor"]) < FACTOR_BUDGET_S


def test_the_loop_while_models_are_saved(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """How long one slice holds the event loop; a thread writes meanwhile."""

    async def go() -> list[float]:
        tasks, rng = Tasks(), random.Random(0)
        estimates = Estimates(tasks.scheduler, Costs(random.Random(0)), models=Models(tmp_path))
        estimates.start()
        for i in range(300):
            for _ in range(40):
                task = tasks.task(work, rng.randint(1, 9), prefix=f"p{i}", **{f"a{i}": 1})
                estimates.finished(task, f"w{rng.randrange(8)}", details(rng.random()))
        saving = estimates._save()
        assert saving is not None
        turns = []
        gc.collect()
        gc.disable()  # collections are the process's, and as long as its heap is large
        while not saving.done():
            began_s = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - began_s)
        gc.enable()
        await estimates.stop()
        return sorted(turns)

    turns = benchmark.pedantic(lambda: asyncio.run(go()), rounds=1)
    slices = [turn for turn in turns if turn > SLICE_S / 2]
    benchmark.extra_info |= {"slices": len(slices), "longest_slice_ms": 1e3 * turns[-1]}
    assert slices[int(0.99 * len(slices))] < LOOP_BUDGET_S


def worker_that_is_idle() -> Worker:
    state = SimpleNamespace(transfer_incoming_count=0, tasks={}, all_running_tasks=[])
    return cast("Worker", SimpleNamespace(state=state))


def test_memory_of_a_task_that_does_nothing(benchmark: BenchmarkFixture) -> None:
    """Of one of Dask's workers some 300 µs of CPU go into each task."""

    async def go() -> float:
        memory = TaskMemory(ProcessMemory())
        memory.start(
            cast(
                "Worker",
                SimpleNamespace(state=SimpleNamespace(transfer_incoming_count=0, tasks={}, all_running_tasks=[])),
            )
        )
        count, best_s = 5000, math.inf
        for _ in range(ROUNDS):
            began_s = time.process_time()
            for key in range(count):
                memory.transition(key, "released", "waiting")
                memory.transition(key, "waiting", "ready")
                memory.transition(key, "ready", "executing")
                memory.transition(key, "executing", "memory")
            best_s = min(best_s, (time.process_time() - began_s) / count)
        memory.stop()
        return best_s

    per_task_s = benchmark.pedantic(lambda: asyncio.run(go()), rounds=1)
    benchmark.extra_info["per_task_us"] = 1e6 * per_task_s
    assert per_task_s < 5e-6


def test_memory_of_a_task_that_lasts(benchmark: BenchmarkFixture) -> None:
    """CPU of the event loop while one task runs for a second, the loop's own included."""

    async def go(runs: bool) -> float:
        memory = TaskMemory(ProcessMemory())
        memory.start(
            cast(
                "Worker",
                SimpleNamespace(state=SimpleNamespace(transfer_incoming_count=0, tasks={}, all_running_tasks=[])),
            )
        )
        if runs:
            memory.transition("x", "ready", "executing")
        began_s = time.process_time()
        await asyncio.sleep(1.0)
        used_s = time.process_time() - began_s
        memory.stop()
        return used_s

    used_s = benchmark.pedantic(lambda: asyncio.run(go(True)) - asyncio.run(go(False)), rounds=1)
    benchmark.extra_info |= {"core_percent": 100 * used_s, "period_s": PERIOD_S}
    assert used_s < 0.01
