"""`Cluster.adapt` on a scheduler with swarm: enough workers at once, none closed that is needed, no to and fro."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler, SchedulerPlugin, as_completed

from scheduler_plugins.on_dask.estimates import _import_river
from scheduler_plugins.on_dask.guard import STRIKES
from tests.support.clusters import ANYWHERE, cluster
from tests.support.gates import gates, where
from tests.support.waiting import eventually

DEADLINE_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def _river() -> None:
    """The scheduler imports it when it has nothing to do, which takes longer than a test waits for threads to end."""
    _import_river()


class Watch(SchedulerPlugin):
    """Counts how often each task ended well, and how many workers there were."""

    name = "watch"

    def __init__(self) -> None:
        self.ends: Counter[Any] = Counter()
        self.sizes: list[int] = [0]

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) == ("processing", "memory"):
            self.ends[key] += 1

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self.sizes.append(len(scheduler.workers))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.sizes.append(len(scheduler.workers))

    @property
    def turns(self) -> int:
        ways = [after > before for before, after in pairwise(self.sizes) if after != before]
        return sum(a != b for a, b in pairwise(ways))


@asynccontextmanager
async def adaptive(minimum: int, maximum: int = 8) -> AsyncIterator[tuple[Scheduler, Client, Watch]]:
    async with (
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=False,
            asynchronous=True,
            scheduler_kwargs={"preload": ["scheduler_plugins"]},
            protocol="tcp",
            dashboard_address=ANYWHERE["dashboard_address"],
        ) as running,
        Client(running, asynchronous=True, set_as_default=False) as client,
    ):
        watch, scheduler = Watch(), running.scheduler
        assert scheduler is not None
        scheduler.add_plugin(watch)
        control = running.adapt(minimum=minimum, maximum=maximum, interval="100ms")
        yield scheduler, client, watch
        control.stop()
        await eventually(lambda: not control._adapting, "nothing is under way", DEADLINE_S)


def are_dasks(scheduler: Scheduler) -> bool:
    """Whether Dask itself answers what `Adaptive` asks."""
    names = ("adaptive_target", "workers_to_close", "retire_workers")
    return all(getattr(scheduler.handlers[name], "__func__", None) is getattr(Scheduler, name) for name in names)


def nap(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


def negative(number: int) -> int:
    return -number


async def test_work_in_layers_does_not_lose_a_result_while_workers_leave() -> None:
    """dask/distributed#4069: whenever the tasks were almost finished, a worker was closed with results on it."""
    async with adaptive(minimum=0) as (scheduler, client, watch):
        naps = client.map(nap, range(60), seconds=0.1)
        total: Any = client.submit(sum, client.map(negative, naps))
        del naps
        assert await total.result() == -sum(range(60))
        await eventually(lambda: len(scheduler.workers) == 1, "one stays with the result", DEADLINE_S)
        assert await total.result() == -sum(range(60))
        assert max(watch.sizes) > 1
        assert set(watch.ends.values()) == {1}
        assert watch.turns <= 1, watch.sizes
        del total
        await eventually(lambda: not scheduler.workers, "nothing is left to do", DEADLINE_S)


async def test_results_that_somebody_holds_are_not_computed_again() -> None:
    """dask/distributed#6880: when most of a hundred tasks were done, the cluster shrank, and began anew."""
    async with adaptive(minimum=1) as (scheduler, client, watch):
        futures = client.map(nap, range(40), seconds=0.2)
        async for future in as_completed(futures, loop=client.loop):
            await future
        await eventually(lambda: len(scheduler.workers) == 1, "one stays with the results", DEADLINE_S)
        assert await client.gather(futures) == list(range(40))
        assert set(watch.ends.values()) == {1}
        assert watch.turns <= 1, watch.sizes


async def test_eight_unknown_tasks_get_more_than_one_worker_at_once() -> None:
    async with cluster(workers=0, swarm=True) as running:
        client, scheduler = await running.client(), running.scheduler
        futures = client.map(nap, range(8), seconds=10.0)
        await eventually(lambda: len(scheduler.queued) == 8, "the tasks are there")
        assert scheduler.adaptive_target(target_duration=5.0) == 4
        assert running.plugin.scaling._saved["adaptive_target"](target_duration="5s") == 1, "Dask's own"
        del futures


async def test_a_worker_that_is_retired_ends_first_what_it_runs() -> None:
    with gates() as ours:
        async with cluster(workers=2, swarm=True) as running:
            client = await running.client()
            future = client.submit(where, pure=False)
            await eventually(lambda: sum(ours.arrived.values()) == 1, "it runs")
            (name,) = ours.arrived
            address = running.scheduler.aliases[name]
            retiring = asyncio.create_task(client.retire_workers([address]))
            leaving = running.plugin.draining.leaving
            await eventually(lambda: leaving, "it is drained")
            others = client.map(nap, range(10), seconds=0.01)
            await client.gather(others)
            held = {task.key for task in running.scheduler.workers[address].has_what}
            assert held.isdisjoint(each.key for each in others), "it is given nothing new"
            assert not retiring.done()
            ours.open_all()
            assert await future == name, "it was not run again elsewhere"
            await retiring
            assert address not in running.scheduler.workers
            assert not leaving
            assert await future == name, "and its result has moved"


async def test_dask_answers_again_when_ours_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=2, swarm=True) as running:
        scaling, scheduler = running.plugin.scaling, running.scheduler
        monkeypatch.setattr(scaling, "_demand", lambda: 1 / 0)
        for _ in range(STRIKES):
            assert scheduler.adaptive_target() == 0
        assert not scaling.is_installed
        assert are_dasks(scheduler)
        assert "workers_to_close" not in vars(scheduler)


async def test_the_setting_leaves_it_to_dask() -> None:
    async with cluster(workers=1, swarm=True, settings={"auto_scaling": False}) as running:
        assert not running.plugin.scaling.is_installed
        assert are_dasks(running.scheduler)


async def test_somebody_who_says_how_many_are_to_go_is_answered_by_dask() -> None:
    async with cluster(workers=3, swarm=True) as running:
        assert len(running.scheduler.workers_to_close(n=2)) == 2
        assert len(running.scheduler.workers_to_close(target=1)) == 2
        names = running.scheduler.workers_to_close(target=1, attribute="name")
        assert set(names) < {"w0", "w1", "w2"}
