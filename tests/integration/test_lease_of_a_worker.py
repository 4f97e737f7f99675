"""A worker that is cut off starts nothing more; one whose scheduler is only slow goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from distributed import Client, Worker
from distributed.core import Status

from swarm.agents.watch.lease import Lease
from tests.support.clusters import AGENTS, Cluster, cluster
from tests.support.partitions import Partition, partition
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a packet was acknowledged")

PATIENCE_S, LEASE_S = 4.0, 3.0
TASK_S = 0.2


@asynccontextmanager
async def behind_a_partition(patience_s: float = PATIENCE_S) -> AsyncIterator[tuple[Cluster, Worker, Partition]]:
    """A worker whose way to the scheduler can be cut. Nobody is removed: that has tests of its own."""
    settings = {"silence_patience": patience_s, "load_balancing": False}
    async with cluster(workers=0, swarm=True, settings=settings) as running, partition(running.address) as between:
        options: dict[str, Any] = {"nthreads": 1, "host": "127.0.0.1", "name": "far", "dashboard": False}
        options["memory_limit"] = 0  # so that nothing else pauses it
        async with Worker(between.address, preload=[AGENTS], **options) as worker:
            await eventually(lambda: "swarm" in worker.extensions, "its agents have started")
            lease = worker.extensions["swarm"].lease
            await eventually(lambda: lease._is_prepared, "it has looked")
            running.plugin.detecting.stop()
            yield running, worker, between


def nap(number: int) -> int:
    time.sleep(TASK_S)
    return number


def begun(worker: Worker) -> int:
    """Tasks that this worker has begun."""
    return sum(entry[1:2] + entry[3:4] == ("ready", "executing") for entry in worker.state.log)


async def with_work(running: Cluster, worker: Worker) -> tuple[Client, list[Any]]:
    client = await running.client()
    futures = client.map(nap, range(40), workers=[worker.address], pure=False)
    await eventually(lambda: len(worker.state.ready) > 30, "its tasks are there")
    return client, futures


async def test_a_worker_that_is_cut_off_starts_nothing_until_it_hears_again() -> None:
    async with behind_a_partition() as (running, worker, between):
        client, futures = await with_work(running, worker)
        lease: Lease = worker.extensions["swarm"].lease
        between.cut()
        cut_s = time.monotonic()
        await eventually(lambda: lease.is_over, "it knows that it is cut off")
        assert time.monotonic() - cut_s > LEASE_S - 1.0, "not before its lease was over"
        before, waiting = begun(worker), len(worker.state.ready)
        await asyncio.sleep(3 * TASK_S)
        assert waiting > 0
        assert begun(worker) == before
        assert not worker.state.executing, "what ran has ended"
        between.heal()
        await eventually(lambda: not lease.is_over, "it hears again")
        assert await client.gather(futures) == list(range(40))
        assert begun(worker) == 40, "once each"


async def test_a_slow_scheduler_takes_no_lease_away() -> None:
    async with behind_a_partition() as (running, worker, between):
        client, futures = await with_work(running, worker)
        lease: Lease = worker.extensions["swarm"].lease
        between.stand_still()
        began_s, before = time.monotonic(), begun(worker)
        while time.monotonic() - began_s < 2.5 * LEASE_S:
            assert not lease.is_over
            await asyncio.sleep(0.05)
        assert time.monotonic() - lease._heard_s > LEASE_S, "no heartbeat was answered"
        assert begun(worker) > before + 5
        between.heal()
        assert await client.gather(futures) == list(range(40))


async def test_a_worker_that_stood_still_itself_goes_on() -> None:
    async with behind_a_partition() as (_, worker, _):
        lease: Lease = worker.extensions["swarm"].lease
        lease._heard_s -= 60.0  # as after a task that held the GIL
        lease._answer = worker.scheduler_delay
        lease.look()
        assert not lease.is_over


async def test_a_pause_of_dask_meanwhile_neither_ends_nor_outlives_it() -> None:
    async with behind_a_partition() as (_, worker, between):
        lease: Lease = worker.extensions["swarm"].lease
        between.cut()
        await eventually(lambda: lease.is_over, "it knows that it is cut off")
        worker.status = Status.paused
        worker.status = Status.running
        assert worker.state.running, "Dask has let it go on"
        lease.look()
        assert not worker.state.running
        worker.status = Status.paused
        between.heal()
        await eventually(lambda: not lease.is_over, "it hears again")
        assert not worker.state.running, "Dask's own pause lasts"
        worker.status = Status.running
        assert worker.state.running


async def test_where_dask_has_changed_it_is_absent_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_a_partition() as (_, worker, _):
        monkeypatch.delitem(worker.periodic_callbacks, "heartbeat")
        lease = Lease(worker, PATIENCE_S)
        lease.look()
        assert lease.absent == "KeyError: 'heartbeat'"
