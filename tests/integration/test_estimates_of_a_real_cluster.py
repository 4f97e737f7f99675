"""A real cluster runs functions with arguments, and estimates of them come true."""

from __future__ import annotations

import time
from typing import Any

import pytest
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.on_dask.estimates import Estimate, Estimates
from tests.support.clusters import cluster
from tests.support.waiting import eventually

MB = 10**6


def takes(hundredths: int, size: int = 10) -> bytes:
    time.sleep(hundredths / 100)
    return bytes(size)


def needs(megabytes: int) -> int:
    block = bytearray(megabytes * MB)
    time.sleep(0.12)
    return len(block)


def together(*parts: bytes) -> int:
    return len(parts)


class Watch(SchedulerPlugin):
    """Estimates, and nothing that acts on them. What was said of each task before it ran is kept."""

    name = "watch"

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.estimates = Estimates(scheduler)
        self.estimates.start()
        self.said: dict[str, Estimate] = {}
        self.failures: list[Exception] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        ts = self.scheduler.tasks[key]
        try:
            if finish == "processing":
                self.said[str(key)] = self.estimates.of(ts)
            elif start == "processing" and finish == "memory":
                self.estimates.finished(ts, kwargs["worker"], kwargs)
            elif finish == "forgotten":
                self.estimates.forget(ts)
        except Exception as error:
            self.failures.append(error)
            raise

    async def close(self) -> None:
        await self.estimates.stop()


async def test_durations_sizes_and_memory_are_learned() -> None:
    async with cluster(workers=2, agents=True) as running:
        watch = Watch()
        running.scheduler.add_plugin(watch)
        await watch.start(running.scheduler)
        await eventually(lambda: watch.estimates._costs is not None, "the model is there")
        client = await running.client()
        first = [client.submit(takes, n, size=n * 1000, key=f"takes-{n}") for n in range(1, 21)]
        peak = [client.submit(needs, 50, key=f"needs-{i}") for i in range(4)]
        assert await client.submit(together, *first, key="together-1") == 20
        assert await client.gather(peak) == [50 * MB] * 4
        last = client.submit(takes, 11, size=11_000, pure=False, key="takes-99")
        large = client.submit(needs, 50, key="needs-99")
        await client.gather([last, large])
        said = watch.said["takes-99"]
        assert said.samples >= 20
        assert said.p50_s == pytest.approx(0.11, rel=0.3)
        assert said.output_bytes == pytest.approx(11_000, rel=0.3)
        assert said.error < 0.3
        memory = watch.said["needs-99"]
        assert memory.samples == 4
        assert memory.peak_bytes is not None, "the agents look after memory"
        assert memory.peak_bytes > 40 * MB
        assert watch.estimates.function(running.scheduler.tasks["takes-99"]).endswith("takes")
        assert watch.said["takes-1"].samples <= 1
        del first, peak, last, large
        await eventually(lambda: not running.scheduler.tasks, "all was forgotten")
        assert len(watch.estimates) == 0
        assert watch.failures == []
        assert watch.estimates.malformed == 0
        await watch.close()


async def test_a_real_transfer_teaches_the_link() -> None:
    async with cluster(workers=2) as running:
        watch = Watch()
        running.scheduler.add_plugin(watch)
        await watch.start(running.scheduler)
        client = await running.client()
        here, there = (worker.address for worker in running.workers)
        for i in range(5):
            source = client.submit(takes, 0, size=20 * MB, workers=[here], key=f"takes-{i}")
            assert await client.submit(together, source, workers=[there], key=f"together-{i}") == 1
        measured = watch.estimates.bandwidth(here, there)
        assert measured != running.scheduler.bandwidth
        assert 20 * MB < measured < 1e11
        assert 0 < watch.estimates.transfer_s(20 * MB, here, there) < 1
        await watch.close()
