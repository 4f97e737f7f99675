"""A worker that will soon be gone is drained: its results move, and what can't end in time runs elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distributed.core import Status

from swarm.protocol import WorkerLeaving
from tests.support.clusters import cluster
from tests.support.gates import gates, where
from tests.support.waiting import eventually


async def test_results_that_only_it_has_are_moved() -> None:
    async with cluster(workers=2, swarm=True) as running:
        client, scheduler = await running.client(), running.scheduler
        doomed = running.workers[0]
        (future,) = await client.scatter([b"x" * 1000], workers=[doomed.address])
        plain = client.submit(lambda: 7, workers=[doomed.address], key="plain")
        assert await plain == 7
        left = await running.plugin.draining.notice(worker=doomed.address, notice_s=10.0, reason="a test")
        assert left == {"results": 0, "tasks": 0}
        assert scheduler.workers[doomed.address].status is Status.closing_gracefully
        await doomed.close()
        assert await future == b"x" * 1000
        assert await plain == 7
        events = [event for event in running.plugin.loop.history if isinstance(event, WorkerLeaving)]
        assert [(event.worker, event.notice_s, event.reason) for event in events] == [(doomed.address, 10.0, "a test")]
        await eventually(lambda: not running.plugin.draining.leaving, "it is forgotten")


async def test_what_cant_end_in_time_runs_elsewhere_at_once() -> None:
    with gates() as ours:
        async with cluster(workers=2, swarm=True) as running:
            client = await running.client()
            future = client.submit(where, pure=False)
            await eventually(lambda: sum(ours.arrived.values()) == 1, "it runs")
            (name,) = ours.arrived
            (other,) = {"w0", "w1"} - {name}
            address = running.scheduler.aliases[name]
            told = asyncio.create_task(running.plugin.draining.notice(worker=address, notice_s=2.0, reason="a test"))
            await eventually(lambda: ours.arrived[other] == 1, "a copy runs on the other worker")
            ours.open(other)
            assert await future == other
            await told
            ours.open_all()


async def test_two_notices_of_one_end_are_one() -> None:
    async with cluster(workers=2, swarm=True) as running:
        draining, address = running.plugin.draining, running.workers[0].address
        await asyncio.gather(*(draining.notice(worker=address, notice_s=5.0, reason="a test") for _ in range(3)))
        assert sum(isinstance(event, WorkerLeaving) for event in running.plugin.loop.history) == 1
        assert await draining.notice(worker="tcp://127.0.0.1:1", notice_s=5.0, reason="a test") == {
            "results": 0,
            "tasks": 0,
        }


async def test_when_all_are_told_at_once_nobody_waits() -> None:
    with gates() as ours:
        async with cluster(workers=2, swarm=True) as running:
            client = await running.client()
            futures = [client.submit(where, pure=False) for _ in range(2)]
            await eventually(lambda: sum(ours.arrived.values()) == 2, "both run")
            notice = running.plugin.draining.notice
            both = (notice(worker=each.address, notice_s=60.0, reason="a test") for each in running.workers)
            left = await asyncio.wait_for(asyncio.gather(*both), 10.0)
            assert [each["tasks"] for each in left] == [1, 1]
            ours.open_all()
            del futures


async def test_a_file_that_appears_drains_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    async with cluster(workers=2, agents=True, swarm=True, settings={"notice_source": str(path)}) as running:
        client = await running.client()
        doomed = running.workers[0].address
        future = client.submit(lambda: 7, workers=[doomed], allow_other_workers=True)
        assert await future == 7
        path.write_text("30")
        scheduler = running.scheduler
        await eventually(
            lambda: any(worker.status is Status.closing_gracefully for worker in scheduler.workers.values()),
            "a worker has read it",
            30.0,
        )
