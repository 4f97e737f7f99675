"""Models of a cluster: what they answer, that their draws are seeded, and one line for each that is impossible."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from swarm.errors import TwinError
from swarm.twin.models import (
    MIB,
    ByArgument,
    ClusterModel,
    Constant,
    Cost,
    Drifting,
    Fixed,
    FromTrace,
    Link,
    LogNormal,
    Memory,
    Network,
    Pareto,
    SchedulerCpu,
    Sudden,
    WorkerModel,
    uniform,
)


def drawn(model: Any, count: int, seed: int = 0) -> list[float]:
    return [model("key", (), random.Random(f"{seed} {i}")) for i in range(count)]


# -- durations ---------------------------------------------------------------------------------------------------


def test_a_constant_is_the_same_for_every_task() -> None:
    assert set(drawn(Constant(0.3), 5)) == {0.3}


@pytest.mark.parametrize("model", [LogNormal(0.1, 1.0), Pareto(0.1, 1.5)])
def test_draws_depend_on_the_generator_alone(model: LogNormal | Pareto) -> None:
    assert drawn(model, 20, seed=1) == drawn(model, 20, seed=1)
    assert drawn(model, 20, seed=1) != drawn(model, 20, seed=2)


def test_log_normal_durations_have_the_median_and_the_spread_that_were_asked_for() -> None:
    values = drawn(LogNormal(0.1, 0.5), 4000)
    assert statistics.median(values) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(map(math.log, values)) == pytest.approx(0.5, rel=0.05)


def test_pareto_durations_have_a_floor_and_a_heavy_tail() -> None:
    values = drawn(Pareto(0.2, 1.5), 4000)
    assert min(values) >= 0.2
    assert sum(value > 0.2 * 10 for value in values) / len(values) == pytest.approx(10**-1.5, rel=0.3)


def test_durations_by_argument() -> None:
    rng = random.Random(0)
    assert ByArgument(0.5)("key", (4.0,), rng) == 2.0
    assert ByArgument(0.5, power=2.0, index=1)("key", (9.0, 3.0), rng) == 4.5
    with pytest.raises(TwinError, match="'key' has 1 numeric arguments, ByArgument asks for number 2"):
        ByArgument(0.5, index=2)("key", (1.0,), rng)


def test_durations_from_a_trace() -> None:
    assert FromTrace({"a": 1.5})("a", (), random.Random(0)) == 1.5
    with pytest.raises(TwinError, match="no duration of task 'b'"):
        FromTrace({"a": 1.5})("b", (), random.Random(0))


# -- speeds ------------------------------------------------------------------------------------------------------


def test_a_fixed_speed_never_changes() -> None:
    assert list(Fixed(2.0).changes()) == [(0.0, 2.0)]


def test_a_sudden_change_happens_once() -> None:
    assert list(Sudden(1.0, 0.25, at_s=7.0).changes()) == [(0.0, 1.0), (7.0, 0.25)]


def test_a_drift_is_a_straight_line_in_steps() -> None:
    changes = list(Drifting(1.0, 0.5, from_s=2.0, until_s=10.0).changes())
    assert changes[0] == (0.0, 1.0)
    assert changes[-1] == (10.0, 0.5)
    assert changes[len(changes) // 2] == (6.0, 0.75)
    assert [at_s for at_s, _ in changes] == sorted(at_s for at_s, _ in changes)


# -- network -----------------------------------------------------------------------------------------------------


def test_a_link_counts_in_both_directions_and_hosts_reach_themselves_faster() -> None:
    slow = Link(0.1, 1e6)
    network = Network(links={("a", "b"): slow})
    assert network.link("a", "b") is network.link("b", "a") is slow
    assert network.link("a", "c") is network.default
    assert network.link("a", "a") is network.same_host


# -- clusters ----------------------------------------------------------------------------------------------------


def test_a_uniform_cluster() -> None:
    cluster = uniform(4, threads=2, workers_per_host=2, speed=lambda i: Fixed(1.0 + i), nanny=True)
    assert cluster.threads == 8
    assert [worker.name for worker in cluster.workers] == ["w0", "w1", "w2", "w3"]
    assert [worker.host for worker in cluster.workers] == ["h0", "h0", "h1", "h1"]
    assert [next(iter(worker.speed.changes()))[1] for worker in cluster.workers] == [1.0, 2.0, 3.0, 4.0]
    assert all(worker.nanny for worker in cluster.workers)
    assert uniform(0).threads == 0


def test_one_speed_may_be_that_of_all_workers() -> None:
    assert {worker.speed for worker in uniform(3, speed=Fixed(0.5)).workers} == {Fixed(0.5)}


# -- what can't be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cost(-1.0), "work_s is -1.0, must be a finite number, 0 or more"),
        (lambda: Cost(math.nan), "work_s is nan"),
        (lambda: Cost(math.inf), "work_s is inf"),
        (lambda: Cost(1.0, output_bytes=-1), "output_bytes is -1"),
        (lambda: Cost(1.0, peak_bytes=-1), "peak_bytes is -1"),
        (lambda: Constant(-0.1), "work_s is -0.1"),
        (lambda: LogNormal(0.0, 1.0), "median_s is 0.0, must be a finite number above 0"),
        (lambda: LogNormal(1.0, -1.0), "sigma is -1.0"),
        (lambda: Pareto(1.0, 0.0), "alpha is 0.0"),
        (lambda: Pareto(-1.0, 1.0), "least_s is -1.0"),
        (lambda: ByArgument(-1.0), "scale_s is -1.0"),
        (lambda: FromTrace({"a": -2.0}), "the duration of 'a' is -2.0"),
        (lambda: Fixed(0.0), "factor is 0.0"),
        (lambda: Sudden(1.0, 0.0, 1.0), "after is 0.0"),
        (lambda: Sudden(1.0, 1.0, -1.0), "at_s is -1.0"),
        (lambda: Drifting(1.0, 0.5, until_s=1.0, from_s=2.0), "until_s is 1.0, must be above from_s, which is 2.0"),
        (lambda: Drifting(1.0, -0.5, until_s=1.0), "last is -0.5"),
        (lambda: Memory(limit_bytes=-1), "limit_bytes is -1"),
        (lambda: Memory(limit_bytes=100 * MIB), "baseline_bytes is .*, must be below the limit"),
        (lambda: Memory(target=0.9, spill=0.7), "must be shares of the limit in rising order"),
        (lambda: Memory(terminate=1.5), "must be shares of the limit"),
        (lambda: Memory(disk_bytes_per_s=0), "disk_bytes_per_s is 0"),
        (lambda: Link(-1.0, 1.0), "latency_s is -1.0"),
        (lambda: Link(1.0, 0.0), "bytes_per_s is 0.0"),
        (lambda: Network(request_s=-1.0), "request_s is -1.0"),
        (lambda: Network(break_after_s=0.0), "break_after_s is 0.0"),
        (lambda: SchedulerCpu(message_s=-1e-3), "message_s is -0.001"),
        (lambda: SchedulerCpu(graph_task_s=-1e-3), "graph_task_s is -0.001"),
        (lambda: SchedulerCpu(batch_s=-1e-3), "batch_s is -0.001"),
        (lambda: WorkerModel("w", threads=0), "worker w has 0 threads, must have 1 or more"),
        (lambda: WorkerModel("w", restart_s=-1.0), "restart_s is -1.0"),
        (lambda: WorkerModel("w", task_overhead_s=-1.0), "task_overhead_s is -1.0"),
        (lambda: ClusterModel([WorkerModel("w"), WorkerModel("w")]), "worker names w are taken twice"),
        (lambda: ClusterModel([WorkerModel(f"w{i % 1500}") for i in range(1501)]), "worker names w0 are taken twice"),
        (lambda: ClusterModel([WorkerModel("w")], heartbeat_jitter=1.0), "heartbeat_jitter is 1.0"),
        (lambda: ClusterModel([WorkerModel("w")], heartbeat_s=0.0), "heartbeat_s is 0.0, must be"),
        (lambda: uniform(-1), "workers is -1, must be 0 or more"),
        (lambda: uniform(1, workers_per_host=0), "workers_per_host is 0, must be 1 or more"),
    ],
)
def test_an_impossible_model_is_refused_in_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(TwinError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
