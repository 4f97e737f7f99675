from __future__ import annotations

import os
import time
from multiprocessing import resource_tracker
from typing import Any

import pytest
from distributed import Client

from swarm.agents.kinds import anomaly
from swarm.agents.kinds.fault_tolerance import FaultToleranceAgent
from tests.support.agent_alone import Alone
from tests.support.nannies import processes
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> None:
    """Python's own process, which the first `multiprocessing` starts and which stays; it is no leftover of a test."""
    resource_tracker.ensure_running()


def leak_files(seconds: float) -> None:
    """In a thread that outlives the task."""
    import threading

    threading.Thread(target=_leak, args=(seconds,), daemon=True).start()


def _leak(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        os.open("/dev/null", os.O_RDONLY)
        time.sleep(0.02)


def spin(seconds: float) -> None:
    import threading

    threading.Thread(target=_spin, args=(seconds,), daemon=True).start()


def _spin(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - that is the fault


def busy(seconds: float) -> float:
    until_s, total = time.monotonic() + seconds, 0.0
    while time.monotonic() < until_s:
        total += sum(float(each) for each in range(1000))
    return total


def test_real_workers_that_leak_spin_and_block_are_told_from_one_that_is_busy(monkeypatch: Any) -> None:
    monkeypatch.setattr(anomaly, "GROWTH_S", 6.0)
    monkeypatch.setattr(anomaly, "IDLE_SPIN_S", 4.0)
    _import_river()  # the scheduler does so after half a minute, which may be just as the test ends
    with processes(4) as (cluster, client):
        nannies = cluster.workers
        it = Alone(FaultToleranceAgent("host"), dask=nannies[0])
        it.agent.interval_s = 0.25
        leaky, spinning, blocked, healthy = list(client.scheduler_info(n_workers=-1)["workers"])
        cluster.sync(it.__aenter__)
        try:
            wait_until(lambda: _cycle(cluster, it) == 4, "all workers of the host are looked at")
            client.submit(leak_files, 60, workers=leaky, pure=False).result()
            client.submit(spin, 60, workers=spinning, pure=False).result()
            work = client.submit(busy, 30, workers=healthy, pure=False)
            found: dict[str, str] = {}

            def told() -> dict[str, str]:
                _cycle(cluster, it)
                time.sleep(0.2)
                found.update({each["worker"]: each["because"] for each in it.told("worker_suspicious")})
                return found

            wait_until(lambda: {leaky, spinning} <= told().keys(), "two are suspicious", timeout_s=40)
            client.run(block, 6.0, workers=[blocked], wait=False)
            wait_until(lambda: blocked in told(), "the third is too", timeout_s=20)
            assert found == {leaky: "files", spinning: "spins", blocked: "blocked"}
            wait_until(lambda: blocked in _calm(cluster, it), "and calms down", timeout_s=20)
            scores = cluster.sync(it.asks, "anomaly_scores")
            assert scores[healthy]["score"] < 0.5 < scores[leaky]["score"]
            assert not scores[healthy]["is_suspicious"]
            work.cancel()
        finally:
            cluster.sync(it.__aexit__)


def _import_river() -> None:
    import river.drift
    import river.tree  # noqa: F401


def _cycle(cluster: Any, it: Alone) -> int:
    cluster.sync(it.cycle)
    return len(it.agent._processes)  # type: ignore[attr-defined]


def _calm(cluster: Any, it: Alone) -> list[str]:
    _cycle(cluster, it)
    time.sleep(0.2)
    return [each["worker"] for each in it.told("worker_calm")]


def test_a_worker_that_is_killed_is_forgotten_and_the_next_one_found() -> None:
    with processes(1) as (cluster, client):
        it = Alone(FaultToleranceAgent("host"), dask=cluster.workers[0])
        cluster.sync(it.__aenter__)
        try:
            wait_until(lambda: _cycle(cluster, it) == 1, "the worker is looked at")
            first = _pid(client)
            cluster.workers[0].process.process._process.kill()
            wait_until(lambda: _cycle(cluster, it) == 0, "it is gone")
            wait_until(lambda: _cycle(cluster, it) == 1, "the next one is looked at", timeout_s=40)
            (process,) = it.agent._processes.values()  # type: ignore[attr-defined]
            assert process.pid == _pid(client) != first
        finally:
            cluster.sync(it.__aexit__)


def _pid(client: Client) -> int:
    return int(client.submit(os.getpid, pure=False).result())
