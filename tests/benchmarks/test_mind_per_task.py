"""What the mind costs the scheduler's event loop for each task, from ready to forgotten; of several rounds the best.

The tasks do nothing, and thousands of them come at once: the worst case, since all else that Dask does for a task is
then done soon.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from distributed.scheduler import TaskState, WorkerState
from pytest_benchmark.fixture import BenchmarkFixture

from scheduler_plugins.decide.limits import Limit
from scheduler_plugins.learn.costs import Costs
from scheduler_plugins.on_dask.admission import Admission
from scheduler_plugins.on_dask.estimates import Estimates
from scheduler_plugins.on_dask.limits import TaskLimits
from scheduler_plugins.on_dask.mind import Mind
from swarm import twin
from swarm.twin.models import Cost
from tests.support.scheduler_tasks import Tasks, details
from tests.support.twin_runs import ideal

TASKS, ROUNDS = 3000, 5
MIND_BUDGET_S, ADMISSION_BUDGET_S, LIGHT_BUDGET_S, LIMITS_BUDGET_S = 60e-6, 10e-6, 3e-6, 6e-6
SHORT_S = 2e-4


def work(*args: Any) -> None:
    """A function that is never called."""


def test_the_life_of_a_task(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Mind.transition`, all calls for a task together, on Dask's own scheduler in virtual time."""
    spent_s, own, clock = 0.0, Mind.transition, time.perf_counter

    def timed(self: Mind, *arguments: Any) -> None:
        nonlocal spent_s
        began_s = clock()
        own(self, *arguments)
        spent_s += clock() - began_s

    monkeypatch.setattr(Mind, "transition", timed)
    made_up = twin.made_up([(f"work-{i:032x}", (), Cost(SHORT_S)) for i in range(TASKS)])

    def go() -> float:
        nonlocal spent_s
        best_s = math.inf
        for _ in range(ROUNDS):
            spent_s = 0.0
            gc.collect()
            assert twin.simulate(made_up, ideal(4), policy="swarm").status == "finished"
            best_s = min(best_s, spent_s / TASKS)
        return best_s

    took_s: float = benchmark.pedantic(go, rounds=1)
    benchmark.extra_info["per_task_us"] = 1e6 * took_s
    assert 0.0 < took_s < MIND_BUDGET_S


def per_task_s(step: Callable[[TaskState], None], made: list[TaskState]) -> float:
    gc.collect()
    gc.disable()
    try:
        began_s = time.perf_counter()
        for task in made:
            step(task)
        return (time.perf_counter() - began_s) / len(made)
    finally:
        gc.enable()


@pytest.mark.parametrize(("seconds", "is_light", "budget_s"), [
    (1.0, False, ADMISSION_BUDGET_S),
    (SHORT_S, True, LIGHT_BUDGET_S),
])  # fmt: skip
def test_admission_of_a_task(benchmark: BenchmarkFixture, seconds: float, is_light: bool, budget_s: float) -> None:
    tasks = Tasks()
    estimates = Estimates(tasks.scheduler, Costs(random.Random(0)))
    worker = tasks.worker("tcp://10.0.0.1:1")
    worker.metrics = {"memory": 10**8, "managed_bytes": 0, "spilled_bytes": {"memory": 0, "disk": 0}}
    where: dict[TaskState, WorkerState] = {}
    admission = Admission(tasks.scheduler, estimates, cast("Any", MagicMock()), lambda worker: (), where.get)
    admission.add_worker(worker)
    for number in range(500):
        estimates.finished(tasks.task(work, number), worker.address, details(seconds))

    def step(task: TaskState) -> None:
        task.processing_on = worker
        assert admission.fits(task, worker)
        admission.transition(task, "queued", "processing")
        admission.transition(task, "processing", "memory")
        admission.transition(task, "released", "forgotten")

    def go() -> float:
        best_s = math.inf
        for _ in range(ROUNDS):
            made = [tasks.task(work, number) for number in range(TASKS)]
            for task in made:
                estimates.of(task)
            assert estimates.is_light(made[0]) is is_light
            best_s = min(best_s, per_task_s(step, made))
        return best_s

    best_s: float = benchmark.pedantic(go, rounds=1)
    benchmark.extra_info["per_task_us"] = 1e6 * best_s
    assert best_s < budget_s


def test_limits_of_a_task(benchmark: BenchmarkFixture) -> None:
    """Where every task has one; where none has, nobody asks."""
    tasks = Tasks()
    scheduler = cast("Any", tasks.scheduler)
    scheduler.running = {tasks.worker("tcp://10.0.0.1:1"), tasks.worker("tcp://10.0.0.2:1")}
    worker = tasks.worker("tcp://10.0.0.1:1")
    nothing = cast("Any", MagicMock())

    def made_of(limit: Limit) -> TaskLimits:
        return TaskLimits(
            scheduler, limit, nothing, random.Random(0), nothing, began_s=lambda *_: None, let_go=lambda _: None
        )

    assert not made_of(Limit()).is_asked_for

    def go() -> float:
        best_s = math.inf
        for _ in range(ROUNDS):
            limits = made_of(Limit(60.0))
            assert limits.is_asked_for

            def step(task: TaskState, limits: TaskLimits = limits) -> None:
                task.processing_on = worker
                limits.rests(task)
                limits.may_run(task, worker)
                limits.transition(task, "queued", "processing")
                limits.transition(task, "processing", "memory")
                limits.transition(task, "released", "forgotten")

            best_s = min(best_s, per_task_s(step, [tasks.task(work, number) for number in range(TASKS)]))
        return best_s

    best_s: float = benchmark.pedantic(go, rounds=1)
    benchmark.extra_info["per_task_us"] = 1e6 * best_s
    assert best_s < LIMITS_BUDGET_S
