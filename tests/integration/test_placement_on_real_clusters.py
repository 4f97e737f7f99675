"""Plain Dask code on clusters where swarm places the tasks: whatever a user does, nothing is lost and nothing fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dask
import dask.dataframe
import pandas as pd
import pytest
from distributed import Client, fire_and_forget, get_client, secede, worker_client
from distributed.core import Status

from scheduler_plugins.on_dask.guard import STRIKES
from scheduler_plugins.on_dask.mind import PART, Mind
from tests.support.clusters import Cluster, cluster
from tests.support.placement_audit import audit
from tests.support.random_swarms import Auditor
from tests.support.waiting import eventually

TIMEOUT_S = 20.0
_ran: list[Any] = []
_gate = threading.Event()


def inc(x: int) -> int:
    return x + 1


def note(x: Any) -> Any:
    _ran.append(x)
    return x


def flaky(x: int) -> int:
    _ran.append(x)
    if _ran.count(x) < 3:
        raise ValueError(x)
    return x


def at_gate(x: Any) -> Any:
    if not _gate.wait(30.0):
        raise TimeoutError("the gate was not opened")
    return x


@pytest.fixture(autouse=True)
def _open_in_the_end() -> Any:
    _gate.clear()
    _ran.clear()
    yield
    _gate.set()


@asynccontextmanager
async def placed(workers: int = 2, **config: Any) -> AsyncIterator[tuple[Cluster, Client]]:
    """A cluster with swarm on; in the end nothing of it has failed, and its books agree with Dask's.

    Workers that a test pauses stay paused: Dask would let them go on as soon as it sees that they have memory.
    """
    with dask.config.set({"distributed.worker.memory.pause": False, **config}):
        async with cluster(workers=workers, swarm=True) as running:
            client = await running.client()
            assert running.plugin.mind.is_on
            yield running, client
            if running.plugin.mind.is_on:
                await settled(running)
            assert not running.plugin.guard.failures


async def settled(running: Cluster) -> None:
    auditor = Auditor()
    auditor.scheduler = running.scheduler
    await asyncio.sleep(0)
    auditor.compare()


async def soon(future: Any, timeout_s: float = TIMEOUT_S) -> Any:
    return await asyncio.wait_for(future, timeout_s)


def mind(running: Cluster) -> Mind:
    return running.plugin.mind


def pool(running: Cluster) -> Any:
    return mind(running).placing.placement


# -- futures ----------------------------------------------------------------------------------------------------------


async def test_futures_that_are_released_while_they_wait_are_forgotten() -> None:
    async with placed() as (running, client):
        busy = client.map(at_gate, range(2), pure=False)
        waiting = client.map(note, range(50))
        await eventually(lambda: len(pool(running)) >= 50, "they wait")
        kept = waiting[:5]
        del waiting
        await eventually(lambda: len(pool(running)) == 5, "the others are forgotten")
        await settled(running)
        _gate.set()
        assert await soon(client.gather(kept)) == list(range(5))
        assert await soon(client.gather(busy)) == [0, 1]
        assert sorted(_ran) == list(range(5))
        del kept, busy
        await eventually(lambda: not running.scheduler.tasks, "all are forgotten")
        assert not mind(running).placing.ranks.tasks()
        assert mind(running).placing.ranks.remaining_s == 0.0


async def test_tasks_that_are_cancelled_while_they_wait_never_run() -> None:
    async with placed() as (running, client):
        busy = client.map(at_gate, range(2), pure=False)
        waiting = client.map(note, range(20))
        await eventually(lambda: len(pool(running)) >= 20, "they wait")
        await client.cancel(waiting)
        await eventually(lambda: len(pool(running)) == 0, "none waits")
        _gate.set()
        await soon(client.gather(busy))
        assert await soon(client.submit(inc, 1)) == 2
        assert not _ran


async def test_a_graph_that_builds_on_futures_of_another() -> None:
    async with placed() as (_, client):
        futures = client.map(inc, range(20))
        for _ in range(4):
            futures = client.map(inc, futures)
        total = client.submit(sum, futures)
        assert await soon(total) == sum(range(20)) + 20 * 5


async def test_tasks_whose_inputs_fail_are_wanted_no_more() -> None:
    async with placed() as (running, client):
        bad = client.submit(lambda: 1 // 0)
        after = client.map(lambda i, x: i + x, range(10), x=bad)
        with pytest.raises(ZeroDivisionError):
            await soon(client.gather(after))
        assert await soon(client.submit(inc, 1)) == 2
        await eventually(lambda: len(pool(running)) == 0, "none waits")


async def test_retries_and_failures() -> None:
    async with placed() as (_, client):
        assert await soon(client.gather(client.map(flaky, range(8), retries=4))) == list(range(8))


async def test_fire_and_forget() -> None:
    async with placed() as (running, client):
        fire_and_forget(client.map(note, range(20)))
        await eventually(lambda: len(_ran) == 20, "all have run")
        await eventually(lambda: not running.scheduler.tasks, "all are forgotten")


async def test_scattered_and_published_data() -> None:
    async with placed(3) as (running, client):
        data = await client.scatter([1, 2, 3], broadcast=True)
        await client.publish_dataset(numbers=client.map(inc, data))
        other = await running.client()
        numbers = await other.get_dataset("numbers")
        assert await soon(other.gather(other.map(inc, numbers))) == [3, 4, 5]
        await client.unpublish_dataset("numbers")


async def test_what_the_user_wants_first_runs_first() -> None:
    async with placed(1) as (running, client):
        busy = client.submit(at_gate, 0)
        await eventually(lambda: running.workers[0].state.executing_count == 1, "the worker is busy")
        low = client.map(note, [f"low{i}" for i in range(10)], priority=-5)
        plain = client.map(note, [f"plain{i}" for i in range(10)])
        high = client.map(note, [f"high{i}" for i in range(10)], priority=5)
        await eventually(lambda: len(pool(running)) + len(running.workers[0].state.ready) >= 30, "all wait")
        _gate.set()
        await soon(client.gather([*low, *plain, *high, busy]))
        # The few that were sent ahead, when nothing more important was there, may go first.
        kinds = [str(name).rstrip("0123456789") for name in _ran]
        assert kinds.index("plain") > 5 or kinds[:1] != ["plain"]
        assert kinds[-5:] == ["low"] * 5


# -- tasks that submit tasks ------------------------------------------------------------------------------------------


def of_its_own(n: int) -> int:
    with worker_client() as client:
        return int(sum(client.gather(client.map(inc, range(n), pure=False))))


def and_waits(x: int) -> int:
    client = get_client()
    future = client.submit(inc, x)
    secede()
    return int(future.result())


async def test_tasks_that_wait_for_tasks_of_their_own() -> None:
    """All threads were taken by tasks that waited: the inner ones stayed in the pool for ever."""
    async with placed(2) as (_, client):
        assert await soon(client.gather(client.map(of_its_own, range(6)))) == [n * (n + 1) // 2 for n in range(6)]


async def test_tasks_that_leave_their_thread() -> None:
    async with placed(1) as (_, client):
        assert await soon(client.gather(client.map(and_waits, range(5)))) == list(range(1, 6))


# -- workers ----------------------------------------------------------------------------------------------------------


async def test_workers_that_join_take_part() -> None:
    async with placed(1) as (running, client):
        futures = client.map(at_gate, range(12))
        await eventually(lambda: len(pool(running)) >= 11, "they wait")
        for _ in range(3):
            await running.join()
        await eventually(lambda: all(w.state.executing_count for w in running.workers), "all work")
        _gate.set()
        assert await soon(client.gather(futures)) == list(range(12))


async def test_workers_that_leave_lose_nothing() -> None:
    async with placed(3) as (running, client):
        futures = client.map(lambda x: (asyncio.run(asyncio.sleep(0.02)), x)[1], range(60))
        await eventually(lambda: sum(f.done() for f in futures) > 5, "some are done")
        await running.workers.pop().close()
        await client.retire_workers([running.workers[0].address])
        assert await soon(client.gather(futures)) == list(range(60))


async def test_without_workers_tasks_wait_for_the_first() -> None:
    async with placed(0) as (running, client):
        futures = client.map(inc, range(10))
        total = client.submit(sum, futures)
        await eventually(lambda: len(pool(running)) == 10, "they wait")
        await running.join()
        assert await soon(total) == 55


async def test_a_worker_that_pauses_gives_back_what_it_has_not_begun() -> None:
    """Nobody steals any more: what waited there waited until it went on."""
    async with placed(1) as (running, client):
        first = running.workers[0]
        futures = client.map(note, range(600))
        await eventually(lambda: len(_ran) > 50, "it knows how short they are, and sends them ahead")
        first.status = Status.paused
        await eventually(lambda: running.scheduler.workers[first.address].status is Status.paused, "it is paused")
        await running.join()
        assert await soon(client.gather(futures)) == list(range(600))
        first.status = Status.running
        assert await soon(client.gather(client.map(inc, range(100)))) == list(range(1, 101))


async def test_many_paused_workers_do_not_hold_up_the_others() -> None:
    async with placed(6) as (running, client):
        for worker in running.workers[:5]:
            worker.status = Status.paused
        await eventually(lambda: len(running.scheduler.running) == 1, "five are paused")
        assert await soon(client.gather(client.map(inc, range(40)))) == list(range(1, 41))
        for worker in running.workers[:5]:
            worker.status = Status.running
        await eventually(lambda: len(running.scheduler.running) == 6, "all go on")
        assert await soon(client.gather(client.map(inc, range(100, 140)))) == list(range(101, 141))


async def test_restart() -> None:
    async with placed(2) as (running, client):
        done = client.map(inc, range(10))
        await soon(client.gather(done))
        waiting = client.map(at_gate, range(10))
        await eventually(lambda: len(pool(running)) > 0, "they wait")
        _gate.set()  # threads of workers that are gone would wait for it
        await client.restart(wait_for_workers=False)
        assert len(pool(running)) == 0
        assert not pool(running)._on
        assert not mind(running).placing.ranks.tasks()
        assert all(future.cancelled() for future in (*done, *waiting))
        await running.join()
        assert await soon(client.submit(inc, 1)) == 2


# -- what only Dask may place -----------------------------------------------------------------------------------------


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n


async def test_actors() -> None:
    async with placed() as (_, client):
        counter = client.submit(Counter, actor=True)
        assert await soon(client.submit(lambda c: [c.add().result() for _ in range(3)], counter)) == [1, 2, 3]
        assert await soon(client.gather(client.map(inc, range(10)))) == list(range(1, 11))


async def test_resources_and_workers() -> None:
    async with placed(1) as (running, client):
        await running.join(resources={"GPU": 1}, name="gpu")
        on_gpu = client.map(lambda x: __import__("distributed").get_worker().name, range(6), resources={"GPU": 1})
        on_first = client.map(inc, range(6), workers=[running.workers[0].address])
        plain = client.map(inc, range(100, 130))
        assert set(await soon(client.gather(on_gpu))) == {"gpu"}
        assert await soon(client.gather(on_first)) == list(range(1, 7))
        assert await soon(client.gather(plain)) == list(range(101, 131))


async def test_shuffles() -> None:
    frame = dask.dataframe.from_pandas(
        pd.DataFrame({"x": range(500), "y": [i % 7 for i in range(500)]}), npartitions=10
    )
    async with placed(3) as (_, client):
        shuffled = await soon(client.compute(frame.shuffle("y", shuffle_method="p2p")))
        assert sorted(shuffled.x) == list(range(500))


# -- settings of Dask -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saturation", ["inf", 1.1, 10.0])
@pytest.mark.parametrize("stealing", [True, False])
async def test_any_saturation_with_or_without_stealing_and_afterwards_as_before(
    saturation: Any, stealing: bool
) -> None:
    config = {"distributed.scheduler.worker-saturation": saturation, "distributed.scheduler.work-stealing": stealing}
    async with placed(2, **config) as (running, client):
        assert "stealing" not in running.scheduler.plugins
        busy = client.map(at_gate, range(2), pure=False)
        futures = client.map(inc, range(50))
        total = client.submit(sum, futures)
        after = client.map(inc, futures)
        await eventually(lambda: len(pool(running)) >= 48, "they wait")
        mind(running).stop()
        assert float(saturation) == running.scheduler.WORKER_SATURATION
        _gate.set()
        assert await soon(total) == sum(range(1, 51))
        assert await soon(client.gather(after)) == list(range(2, 52))
        await soon(client.gather(busy))
        running.scheduler.validate_state()
        await eventually(lambda: (_stealing(running) is not None) == stealing, "stealing is as it was")


def _stealing(running: Cluster) -> Any:
    return next((p for name, p in running.scheduler.plugins.items() if type(p).__name__ == "WorkStealing"), None)


async def test_adaptive_clusters_grow_with_what_waits() -> None:
    async with placed(1) as (running, client):
        futures = client.map(at_gate, range(30))
        await eventually(lambda: len(pool(running)) >= 29, "they wait")
        assert running.scheduler.adaptive_target() > 1
        _gate.set()
        await soon(client.gather(futures))
        assert not running.scheduler.workers_to_close(target=0), "the results have nowhere to go"
        del futures
        await eventually(lambda: running.scheduler.workers_to_close(target=0), "idle workers may be closed")


# -- without us -------------------------------------------------------------------------------------------------------


async def test_a_plugin_that_is_taken_out_while_tasks_wait() -> None:
    async with cluster(workers=2, swarm=True, settings={"monitoring_interval": 0.05}) as running:
        client, plugin = await running.client(), running.plugin
        busy = client.map(at_gate, range(2), pure=False)
        futures = client.map(inc, range(50))
        total = client.submit(sum, futures)
        await eventually(lambda: len(plugin.mind.placing.placement) >= 48, "they wait")
        await client.unregister_scheduler_plugin("swarm")
        later = client.map(inc, range(100, 150))
        _gate.set()
        assert await soon(total) == sum(range(1, 51))
        assert await soon(client.gather(later)) == list(range(101, 151))
        await soon(client.gather(busy))
        await eventually(lambda: not plugin.mind.is_on, "it has noticed")
        assert not plugin.guard.failures
        assert "is_rootish" not in vars(running.scheduler)
        running.scheduler.validate_state()


def breaking(part: Any, name: str, times: int) -> Callable[..., Any]:
    """Raises that often, and does what it should from then on."""
    own, left = getattr(part, name), [times]

    def broken(*args: Any, **kwargs: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise ZeroDivisionError("on purpose")
        return own(*args, **kwargs)

    return broken


PLACES = [
    (lambda mind: mind.placing.placement, "ready"),
    (lambda mind: mind.placing.placement, "given"),
    (lambda mind: mind.placing.placement, "ended"),
    (lambda mind: mind.placing.placement, "choices"),
    (lambda mind: mind.placing.placement, "unready"),
    (lambda mind: mind.placing.placement, "_pick"),
    (lambda mind: mind.placing.ranks, "_rank"),
    (lambda mind: mind.placing.ranks, "drop"),
    (lambda mind: mind.placing.recalls, "insist"),
    (lambda mind: mind.estimates, "of"),
    (lambda mind: mind.estimates, "finished"),
    (lambda mind: mind.placing, "look"),
    (lambda mind: mind.placing, "_home"),
]


@pytest.mark.parametrize(("of", "name"), PLACES, ids=[name for _, name in PLACES])
@pytest.mark.parametrize("times", [1, 1000])
async def test_what_fails_in_us_does_not_keep_dask_from_working(
    monkeypatch: pytest.MonkeyPatch, of: Any, name: str, times: int
) -> None:
    async with cluster(workers=2, swarm=True) as running:
        client, ours = await running.client(), mind(running)
        assert await soon(client.submit(inc, 0)) == 1
        part = of(ours)
        broken = breaking(part, name, times)
        try:
            monkeypatch.setattr(part, name, broken)
        except AttributeError:
            monkeypatch.setattr(type(part), name, broken)
        for i in range(4):
            futures = client.map(inc, range(100 * i, 100 * i + 30))
            total = client.submit(sum, client.map(inc, futures))
            assert await soon(total) == sum(range(100 * i + 2, 100 * i + 32))
            del futures, total
        guard = running.plugin.guard
        assert guard.failures[PART] >= 1
        assert ours.is_on == (guard.failures[PART] < STRIKES)
        if times == 1000 and name not in ("look", "insist", "unready"):
            assert not ours.is_on
        if ours.is_on and times == 1:
            audit(pool(running))
        running.scheduler.validate_state()
        await eventually(lambda: not running.scheduler.queued, "nothing waits")


async def test_what_fails_at_the_start_leaves_dask_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would be in: tasks would wait for somebody who is not there."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("scheduler_plugins.on_dask.ranking.Ranking.start", fail)
    async with cluster(workers=2, swarm=True) as running:
        client = await running.client()
        assert not mind(running).is_on
        assert running.plugin.guard.failures[PART] == 1
        assert await soon(client.gather(client.map(inc, range(20)))) == list(range(1, 21))
