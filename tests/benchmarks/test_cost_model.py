"""What the cost model costs the scheduler's event loop, its memory, and how far it is off.

The times are of what it does, not of how busy the machine is: the same tasks are learned several times over, and of
each call the shortest time counts.
"""

from __future__ import annotations

import gc
import json
import math
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
from dask._task_spec import Task as DaskTask
from dask._task_spec import TaskRef
from pytest_benchmark.fixture import BenchmarkFixture

from scheduler_plugins.learn.costs import ZOO, Costs
from scheduler_plugins.learn.features import features_of
from scheduler_plugins.learn.protocol import Observation, TaskFeatures, magnitude
from tests.support.synthetic_tasks import SETS, Task, finished

MEDIAN_BUDGET_S, P99_BUDGET_S = 8e-6, 50e-6
"""Of observe and predict together."""
FUNCTION_BUDGET_BYTES = 60_000
REPEATS = 9


def one_function(tasks: int = 3000) -> Iterable[Task]:
    """All that a task can have: two numbers, inputs, a worker out of eight, sizes of result and memory."""
    rng = random.Random(1)
    for _ in range(tasks):
        n, worker = rng.randint(1, 100), f"w{rng.randrange(8)}"
        terms = (magnitude(n), magnitude(rng.randint(1, 9)))
        features = TaskFeatures("lib.f", ("0", "n"), terms, 1e6, 2, worker, 2)
        yield finished(0.1 * n, features, rng, 0.1, output_bytes=1e5, peak_bytes=2e6 * n)


def twenty_functions(tasks: int = 3000) -> Iterable[Task]:
    rng = random.Random(2)
    for task in one_function(tasks):
        yield task._replace(features=task.features._replace(function=f"lib.f{rng.randrange(20)}"))


def each_once(tasks: int = 1000) -> Iterable[Task]:
    for i, task in enumerate(one_function(tasks)):
        yield task._replace(features=task.features._replace(function=f"lib.f{i}"))


STREAMS: dict[str, tuple[Callable[[], Iterable[Task]], bool]] = {
    "one function": (one_function, True),
    "twenty functions": (twenty_functions, False),
    "each function once": (each_once, False),
    **{name: (make, True) for name, make in SETS.items()},
}
"""Name → tasks, and whether the budget holds: what is new costs more."""


def shortest_times(tasks: Iterable[Task]) -> list[tuple[float, float]]:
    """Seconds of predict and of observe, for each task."""
    todo = list(tasks)
    best = [(math.inf, math.inf)] * len(todo)
    clock = time.perf_counter
    for _ in range(REPEATS):
        costs = Costs(random.Random(0))
        gc.collect()
        gc.disable()
        try:
            for i, (features, observation, _true_s) in enumerate(todo):
                started_s = clock()
                costs.predict(features, 0.5)
                between_s = clock()
                costs.observe(features, observation)
                ended_s = clock()
                predict_s, observe_s = best[i]
                best[i] = (min(predict_s, between_s - started_s), min(observe_s, ended_s - between_s))
                if i % 500 == 0:
                    costs.learn_pending(0.2, clock)
        finally:
            gc.enable()
    return best


@pytest.mark.parametrize("stream", STREAMS)
def test_predict_and_observe(benchmark: BenchmarkFixture, stream: str) -> None:
    make, in_budget = STREAMS[stream]
    times: list[tuple[float, float]] = benchmark.pedantic(lambda: shortest_times(make()), rounds=1)
    both = sorted(map(sum, times))
    median_s, p99_s = both[len(both) // 2], both[int(0.99 * len(both))]
    benchmark.extra_info |= {
        "predict_median_us": 1e6 * statistics.median(predict_s for predict_s, _ in times),
        "observe_median_us": 1e6 * statistics.median(observe_s for _, observe_s in times),
        "both_median_us": 1e6 * median_s,
        "both_mean_us": 1e6 * statistics.mean(both),
        "both_p99_us": 1e6 * p99_s,
    }
    if in_budget:
        assert median_s < MEDIAN_BUDGET_S
        assert p99_s < P99_BUDGET_S


@pytest.mark.parametrize("arguments", [1, 3, 10])
def test_features(benchmark: BenchmarkFixture, arguments: int) -> None:
    task = DaskTask("key", one_function, TaskRef("x"), *range(arguments), n=3)
    features = benchmark(features_of, task)
    assert "n" in features.names or arguments == 10


def test_features_of_a_million_elements(benchmark: BenchmarkFixture) -> None:
    benchmark(features_of, DaskTask("key", one_function, [0] * 10**6))
    assert benchmark.stats.stats.median < 50e-6


def test_memory_and_snapshot(benchmark: BenchmarkFixture) -> None:
    """Of a thousand functions, each with 40 tasks of all that a task can have."""
    costs = Costs(random.Random(0))
    rng = random.Random(0)
    tracemalloc.start()
    for task in one_function(40_000):
        features = task.features._replace(function=f"lib.f{rng.randrange(1000)}")
        costs.observe(features, task.observation)
    per_function_bytes = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    text = benchmark.pedantic(lambda: json.dumps(costs.to_state()), rounds=3)
    benchmark.extra_info |= {"bytes_per_function": per_function_bytes, "snapshot_bytes_per_function": len(text) / 1000}
    assert per_function_bytes < FUNCTION_BUDGET_BYTES


@pytest.mark.parametrize("zoo", [*((name,) for name in ZOO), ZOO], ids="+".join)
@pytest.mark.parametrize("name", SETS)
def test_error(benchmark: BenchmarkFixture, name: str, zoo: tuple[str, ...]) -> None:
    """Median of |log(actual / predicted)|, beside that of Dask's average and of the true formula."""
    model: list[float] = []
    dask: list[float] = []
    oracle: list[float] = []
    averages: dict[str, float] = {}

    def go() -> None:
        costs = Costs(random.Random(0), zoo=zoo)
        for i, (features, observation, true_s) in enumerate(SETS[name]()):
            duration_s = observation.duration_s
            if (said := costs.predict(features)) is not None:
                model.append(abs(math.log(duration_s / said.p50_s)))
                dask.append(abs(math.log(duration_s / averages[features.function])))
                oracle.append(abs(math.log(duration_s / true_s)))
            averages[features.function] = (duration_s + averages.get(features.function, duration_s)) / 2
            costs.observe(features, Observation(duration_s))
            if i % 200 == 0:
                costs.learn_pending(1.0, time.perf_counter)

    benchmark.pedantic(go, rounds=1)
    errors = {
        "error": statistics.median(model),
        "of_dask": statistics.median(dask),
        "oracle": statistics.median(oracle),
    }
    benchmark.extra_info |= errors
    assert len(zoo) == 1 or errors["error"] < errors["of_dask"]
