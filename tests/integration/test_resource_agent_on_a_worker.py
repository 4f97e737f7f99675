from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from distributed.core import Status

from swarm.agents.base import isolation_of
from swarm.agents.kinds import brake
from swarm.agents.kinds.resources import ResourceAgent
from swarm.errors import AgentDefinitionError, MessageError
from swarm.protocol import Telemetry
from tests.support.agent_alone import Alone
from tests.support.clusters import cluster
from tests.support.waiting import eventually

LIMIT = 1_000_000_000


async def test_it_tells_of_pressure_with_the_sample_that_the_worker_takes_anyway() -> None:
    assert isolation_of(ResourceAgent, None) == "loop"
    async with cluster(workers=1, agents=True, swarm=True) as running:
        worker = running.workers[0]
        async with Alone(ResourceAgent("watcher"), dask=worker) as it:
            await it.cycle()
            told = await it.asks("pressure")
            newest = worker.extensions["swarm"].agents[0].newest
            assert told["telemetry"] == newest.to_wire()
            assert told["forecast_s"] == {"memory": None, "disk": None}
            if told["memory_bandwidth_bytes_per_s"] is None:
                assert "memory bandwidth" in told["absent"]
            assert told["brake"] == {"is_pressed": False, "presses": 0, "full_in_s": None}


async def test_on_a_plain_worker_it_samples_itself_and_stalls_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1) as running, Alone(ResourceAgent("watcher"), dask=running.workers[0]) as it:
        await it.cycle()
        assert (await it.asks("pressure"))["telemetry"]["worker_memory_bytes"] > 0
        sampler: Any = it.agent._sampler  # type: ignore[attr-defined]
        for percent in (0.0, 60.0, 70.0, 30.0, 10.0, 0.0):
            sample = replace(Telemetry(time.time()), host_pressure_io_percent=percent)
            monkeypatch.setattr(sampler, "sample", lambda now_s, sample=sample: sample)
            await it.cycle()
        place = running.workers[0].address
        assert it.told("host_pressure") == [{"worker": place, "resource": "io", "percent": 60.0}]
        assert it.told("host_relieved") == [{"worker": place, "resource": "io"}]


async def test_a_worker_that_fills_quickly_takes_no_new_tasks_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brake, "MOST_HELD_S", 30.0)
    async with cluster(workers=0) as running:
        worker = await running.join(memory_limit=LIMIT, nthreads=2)
        client = await running.client()
        used = 0.3 * LIMIT
        monkeypatch.setattr(worker.monitor, "get_process_memory", lambda: int(used))
        manager = worker.memory_manager
        before = manager.memory_pause_fraction
        async with Alone(ResourceAgent("watcher"), dask=worker) as it:
            clock_s = time.monotonic()

            def now() -> float:
                return clock_s

            from swarm.agents.kinds import resources

            monkeypatch.setattr(resources.time, "monotonic", now)

            async def half_a_second(grows: float) -> None:
                nonlocal used, clock_s
                used, clock_s = used + grows * LIMIT, clock_s + 0.5
                await it.cycle()

            for _ in range(4):
                await half_a_second(0.0)
            for _ in range(6):
                await half_a_second(0.05)
            monkeypatch.undo()
            monkeypatch.setattr(worker.monitor, "get_process_memory", lambda: int(used))
            assert used < before * LIMIT
            assert manager.memory_pause_fraction < used / LIMIT
            await eventually(lambda: worker.status is Status.paused, "Dask's memory manager pauses the worker")
            await eventually(lambda: running.scheduler.workers[worker.address].status is Status.paused, "as is known")
            waits = client.submit(len, "abc", pure=False)
            assert not waits.done()
            used = 0.3 * LIMIT  # the tasks that ran are done
            assert await waits == 3
            assert worker.status is Status.running
        assert manager.memory_pause_fraction == before
        assert [what for what, _ in it.audited] == ["lower_pause_threshold", "restore_pause_threshold"]


async def test_the_threshold_that_somebody_else_sets_meanwhile_stays() -> None:
    async with cluster(workers=0) as running:
        worker = await running.join(memory_limit=LIMIT)
        async with Alone(ResourceAgent("watcher"), dask=worker) as it:
            it.agent._lowered = (0.8, 0.6)  # type: ignore[attr-defined]
            worker.memory_manager.memory_pause_fraction = 0.9
        assert worker.memory_manager.memory_pause_fraction == 0.9
        assert it.audited == []


async def test_priorities_are_set_until_the_agent_ends() -> None:
    import psutil

    before = psutil.Process().ionice()
    async with cluster(workers=1) as running:
        async with Alone(ResourceAgent("watcher", io_class="idle"), dask=running.workers[0]) as it:
            assert psutil.Process().ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
            assert await it.asks("unset_priority") is None
            assert psutil.Process().ionice() == before
            assert await it.asks("set_priority", {"io_class": "best_effort", "io_level": 7}) > 1
        assert psutil.Process().ionice() == before
        with pytest.raises(MessageError, match="takes nice, io_class and io_level"):
            await it.asks("set_priority", {"speed": 3})
        with pytest.raises(MessageError, match="not sing"):
            await it.asks("sing")


async def test_it_needs_a_worker() -> None:
    with pytest.raises(AgentDefinitionError, match="lives on a worker"):
        await Alone(ResourceAgent("watcher")).__aenter__()
