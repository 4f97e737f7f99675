"""Copies on real workers: which of two executions counts, whatever happens to either of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import dask
import pytest
from distributed import Client, Future, Reschedule, Worker, secede
from distributed.scheduler import TaskState, WorkerState

from tests.support.clusters import Cluster, cluster
from tests.support.copying import ByHand
from tests.support.gates import Gates, gates, where
from tests.support.waiting import eventually


@dataclass
class Stage:
    """A cluster of `w0`, `w1`, … with a thread each, on which tasks wait at the gate of their worker."""

    running: Cluster
    client: Client
    plugin: ByHand
    gates: Gates

    @property
    def copies(self) -> Any:
        return self.plugin.copies

    def worker(self, name: str) -> WorkerState:
        return self.running.scheduler.workers[self.running.scheduler.aliases[name]]

    def task(self, future: Future[Any]) -> TaskState:
        return self.running.scheduler.tasks[future.key]

    def held(self, name: str) -> int:
        count: int = self.copies.held.count(self.worker(name))
        return count

    @property
    def ends(self) -> list[str]:
        return [end for _, end in self.plugin.ends]

    async def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        """Submit a task, and wait until it runs; the first one runs on `w0`."""
        before = sum(self.gates.arrived.values())
        future = self.client.submit(where, *arguments, pure=False, **options)
        await eventually(lambda: sum(self.gates.arrived.values()) > before, "the task runs")
        return future

    async def copied(self, *arguments: Any, **options: Any) -> Future[Any]:
        """The same, with a copy that runs on `w1`."""
        future = await self.submit(*arguments, **options)
        await self.copy(future)
        return future

    async def copy(self, future: Future[Any], worker: str = "w1") -> None:
        before = self.gates.arrived[worker]
        assert self.copies.begin(self.task(future), self.worker(worker))
        await eventually(lambda: self.gates.arrived[worker] > before, "the copy runs")

    async def beat(self) -> None:
        for worker in self.running.workers:
            if worker.status.name == "running":
                await worker.heartbeat()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with gates() as ours:
        async with cluster(workers=2) as running:
            plugin = ByHand()
            await plugin.start(running.scheduler)
            client = await running.client()
            yield Stage(running, client, plugin, ours)
            ours.open_all()
            plugin.check()
            plugin.stop()


def boom() -> None:
    raise ValueError("boom")


def again() -> None:
    raise Reschedule


# -- the first result wins -------------------------------------------------------------------------------------------


async def test_the_copy_is_first(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w1")
    assert await future == "w1"
    assert stage.ends == ["won"]
    assert stage.task(future).who_has == {stage.worker("w1")}
    assert (stage.held("w0"), stage.held("w1")) == (1, 0)
    # What comes now goes where a thread is free, although Dask thinks that both have one.
    assert await stage.client.submit(where, 1) == "w1"
    stage.gates.open("w0")
    await eventually(lambda: not stage.held("w0"), "the thread is free")
    assert stage.task(future).who_has == {stage.worker("w1")}
    stage.gates.close("w1")
    assert await stage.client.submit(where, 2) == "w0"


async def test_the_original_is_first(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w0")
    assert await future == "w0"
    assert stage.ends == ["lost"]
    assert (stage.held("w0"), stage.held("w1")) == (0, 1)
    stage.gates.open("w1")
    await eventually(lambda: not stage.held("w1"), "the thread is free")
    assert stage.task(future).who_has == {stage.worker("w0")}


async def test_both_at_once(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open_all()
    assert await future in ("w0", "w1")
    await eventually(lambda: not stage.held("w0") and not stage.held("w1"), "both threads are free")
    assert len(stage.task(future).who_has or ()) == 1


async def test_what_takes_the_result_of_a_copy(stage: Stage) -> None:
    future = await stage.copied()
    following = [stage.client.submit(where, future, i, pure=False) for i in range(4)]
    stage.gates.open("w1")
    assert await stage.client.gather(following) == ["w1"] * 4


async def test_a_copy_takes_results_from_elsewhere(stage: Stage) -> None:
    stage.gates.open("w0")
    data = await stage.submit()
    await data
    stage.gates.close("w0")
    future = await stage.submit(data)
    await stage.copy(future)
    stage.gates.open("w1")
    assert await future == "w1"


async def test_a_copy_that_is_given_up_before_it_began_holds_no_thread(stage: Stage) -> None:
    """It is not known here whether it had begun: the worker is asked."""
    future = await stage.submit()
    pinned = stage.client.submit(where, "w1 is busy", workers=["w1"])
    await eventually(lambda: stage.gates.arrived["w1"], "the other worker is busy")
    assert stage.copies.begin(stage.task(future), stage.worker("w1"))
    assert stage.held("w1") == 1
    stage.gates.open("w0")
    assert await future == "w0"
    await eventually(lambda: not stage.held("w1"), "the worker has said that it has no such task")
    assert stage.task(pinned).state == "processing"


# -- errors ----------------------------------------------------------------------------------------------------------


async def test_the_copy_raises_and_the_original_goes_on(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w1", boom)
    await eventually(lambda: stage.ends == ["erred"], "the copy has raised")
    assert stage.held("w1") == 0
    assert stage.task(future).state == "processing"
    stage.gates.open("w0")
    assert await future == "w0"


async def test_the_original_raises_and_the_copy_goes_on(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w0", boom)
    await eventually(lambda: stage.ends == ["took over"], "the original has raised")
    assert stage.task(future).processing_on is stage.worker("w1")
    assert (stage.held("w0"), stage.held("w1")) == (0, 0)
    stage.gates.open("w1")
    assert await future == "w1"


@pytest.mark.parametrize("order", [("w0", "w1"), ("w1", "w0")])
async def test_when_both_raise_the_task_has_failed(stage: Stage, order: tuple[str, str]) -> None:
    future = await stage.copied()
    stage.gates.open(order[0], boom)
    await eventually(lambda: stage.ends, "one has raised")
    assert stage.task(future).state == "processing"
    stage.gates.open(order[1], boom)
    with pytest.raises(ValueError, match="boom"):
        await future


async def test_retries_count_from_the_second_error_on(stage: Stage) -> None:
    future = await stage.copied(retries=1)
    stage.gates.open("w0", boom)
    await eventually(lambda: stage.ends == ["took over"], "the original has raised")
    assert stage.task(future).retries == 1
    stage.gates.then["w0"] = lambda: None
    stage.gates.open("w1", boom)
    assert await future == "w0"  # a third time
    assert stage.task(future).retries == 0


@pytest.mark.parametrize(("who", "end", "result"), [("w0", "took over", "w1"), ("w1", "given up", "w0")])
async def test_one_of_both_asks_to_be_run_elsewhere(stage: Stage, who: str, end: str, result: str) -> None:
    future = await stage.copied()
    stage.gates.open(who, again)
    await eventually(lambda: stage.ends == [end], "it has asked")
    assert stage.task(future).state == "processing"
    stage.gates.open(result)
    assert await future == result
    assert (stage.held("w0"), stage.held("w1")) == (0, 0)


@pytest.mark.parametrize("who", ["w0", "w1"])
async def test_a_task_that_secedes_has_no_copy(stage: Stage, who: str) -> None:
    """It starts others, and would start them twice."""
    stage.gates.at_once[who] = secede
    future = await stage.submit()
    if who == "w0":
        await eventually(lambda: stage.worker("w0").long_running, "it has seceded")
        assert stage.copies.refusal(stage.task(future), stage.worker("w1")) == "it has seceded"
    else:
        await stage.copy(future)
        await eventually(lambda: stage.ends == ["given up"], "the copy has seceded")
        await stage.beat()
        await stage.beat()
        assert stage.held("w1") == 0  # it runs beside the threads that take tasks
        assert await _is_served(stage, "w1")
    stage.gates.open("w0")
    assert await future == "w0"


async def _is_served(stage: Stage, worker: str) -> bool:
    """Whether a thread of the worker takes tasks."""
    return bool(await asyncio.wait_for(stage.client.submit(sum, (1, 2), workers=[worker], pure=False), 5.0) == 3)


# -- workers come and go ---------------------------------------------------------------------------------------------


async def test_the_worker_of_the_original_leaves(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w0")  # its result would come too late
    scheduler = stage.running.scheduler
    task = stage.task(future)
    await scheduler.remove_worker(stage.worker("w0").address, stimulus_id="test")
    assert stage.ends == ["took over"]
    assert task.suspicious == 1
    assert task.processing_on is stage.worker("w1")
    stage.gates.open("w1")
    assert await future == "w1"
    assert stage.gates.arrived["w1"] == 1


async def test_the_worker_of_the_copy_leaves(stage: Stage) -> None:
    future = await stage.copied()
    stage.gates.open("w1")
    await stage.running.scheduler.remove_worker(stage.worker("w1").address, stimulus_id="test")
    assert stage.ends == ["worker left"]
    assert stage.task(future).suspicious == 1
    stage.gates.open("w0")
    assert await future == "w0"


async def test_a_task_that_too_many_workers_died_of_fails_although_a_copy_runs(stage: Stage) -> None:
    future = await stage.copied()
    task = stage.task(future)
    task.suspicious = stage.running.scheduler.allowed_failures
    await stage.running.scheduler.remove_worker(stage.worker("w0").address, stimulus_id="test")
    with pytest.raises(Exception, match="all those workers died"):
        await future
    assert stage.ends == ["given up"]


async def test_the_worker_of_the_original_is_retired(stage: Stage) -> None:
    future = await stage.copied()
    retiring = asyncio.create_task(stage.client.retire_workers([stage.worker("w0").address]))
    await eventually(lambda: stage.ends == ["took over"], "it has left")
    assert stage.task(future).suspicious == 0
    stage.gates.open_all()
    assert await future == "w1"
    await retiring


async def test_the_worker_of_the_copy_pauses(stage: Stage) -> None:
    """Threads go on; and if not, the original does."""
    future = await stage.copied()
    stage.running.scheduler.handle_worker_status_change("paused", stage.worker("w1"), "test")
    stage.gates.open("w1")
    assert await future == "w1"


async def test_both_workers_leave(stage: Stage) -> None:
    future = await stage.copied()
    task = stage.task(future)
    stage.gates.open_all()
    for name in ("w0", "w1"):
        await stage.running.scheduler.remove_worker(stage.worker(name).address, stimulus_id="test")
    assert task.state in ("queued", "no-worker")
    await stage.running.join(name="w2")
    stage.gates.open("w2")
    assert await future == "w2"


# -- the task goes away ----------------------------------------------------------------------------------------------


async def test_the_task_is_cancelled(stage: Stage) -> None:
    future = await stage.copied()
    await future.cancel()
    await eventually(lambda: stage.ends == ["given up"], "it is cancelled")
    # Dask forgets the task, and takes both threads for free; heartbeats say what is true.
    await stage.beat()
    await stage.beat()
    assert (stage.held("w0"), stage.held("w1")) == (1, 1)
    following = stage.client.submit(where, "next", pure=False)
    await eventually(lambda: len(stage.running.scheduler.queued) == 1, "it waits for a thread")
    stage.gates.open("w1")
    assert await following == "w1"
    assert stage.held("w0") == 1


async def test_the_client_goes(stage: Stage) -> None:
    future = await stage.copied()
    del future
    await stage.client.close()
    await eventually(lambda: stage.ends == ["given up"], "nobody wants it any more")


async def test_the_scheduler_is_restarted(stage: Stage) -> None:
    await stage.copied()
    stage.gates.open_all()
    await stage.client.restart(wait_for_workers=False)
    assert stage.ends == ["given up"]
    assert not stage.copies.live


async def test_an_input_is_lost(stage: Stage) -> None:
    """The task waits again, and neither execution counts."""
    stage.gates.open("w0")
    data = await stage.submit()
    await data
    stage.gates.close("w0")
    future = await stage.submit(data)
    await stage.copy(future)
    scheduler = stage.running.scheduler
    for holder in list(stage.task(data).who_has or ()):
        scheduler.release_worker_data(data.key, holder.address, "test")
    assert stage.ends == ["given up"]
    stage.gates.open_all()
    assert await future in ("w0", "w1")


async def test_the_memory_manager_leaves_the_inputs_of_a_copy_alone(stage: Stage) -> None:
    stage.gates.open("w0")
    data = await stage.submit()
    await data
    stage.gates.close("w0")
    future = await stage.submit(data)
    await stage.copy(future)
    await eventually(lambda: len(stage.task(data).who_has or ()) == 2, "the copy's worker has told of its replica")
    stage.running.scheduler.extensions["amm"].run_once()
    assert len(stage.task(data).who_has or ()) == 2
    stage.gates.open("w1")
    assert await future == "w1"
    stage.running.scheduler.extensions["amm"].run_once()
    assert len(stage.task(data).who_has or ()) == 1


# -- what is never copied --------------------------------------------------------------------------------------------


def refused(stage: Stage, future: Future[Any], worker: str = "w1") -> str:
    task, state = stage.task(future), stage.worker(worker)
    reason: str | None = stage.copies.refusal(task, state)
    assert reason is not None
    assert not stage.copies.begin(task, state)
    assert not stage.copies.live
    return reason


async def test_not_where_it_runs_and_not_twice(stage: Stage) -> None:
    future = await stage.submit()
    assert refused(stage, future, "w0") == "it runs there"
    await stage.copy(future)
    assert stage.copies.refusal(stage.task(future), stage.worker("w1")) == "a copy of it runs"
    stage.copies.give_up(future.key)
    assert refused(stage, future) == "it still runs there"
    stage.gates.open("w0")
    await future
    assert refused(stage, future) == "it is memory"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": ["w0"]}, "it may not run there"),
        ({"resources": {"GPU": 1}}, "it is bound to resources"),
    ],
)
async def test_not_where_it_may_not_run(options: dict[str, Any], reason: str) -> None:
    with gates() as ours:
        async with cluster() as running:
            await running.join(resources={"GPU": 1})
            plugin = ByHand()
            await plugin.start(running.scheduler)
            stage = Stage(running, await running.client(), plugin, ours)
            future = await stage.submit(**options)
            first = stage.task(future).processing_on
            assert first is not None
            assert refused(stage, future, "w1" if first.name == "w0" else "w0") == reason
            ours.open_all()
            await future
            plugin.stop()


async def test_where_it_may_run_of_several(stage: Stage) -> None:
    """Dask itself chooses among them."""
    future = await stage.submit(workers=["w0", "w1"])
    other = "w1" if stage.task(future).processing_on is stage.worker("w0") else "w0"
    await stage.copy(future, other)
    stage.gates.open(other)
    assert await future == other


async def test_not_what_must_run_once(stage: Stage) -> None:
    with dask.annotate(swarm_once=True):
        future = await stage.submit()
    assert refused(stage, future) == "it must not run twice (swarm_once)"


async def test_no_actors(stage: Stage) -> None:
    future = stage.client.submit(Busy, pure=False, actor=True)
    await eventually(lambda: stage.gates.arrived, "the actor is being made")
    (task,) = stage.running.scheduler.tasks.values()
    other = "w1" if task.processing_on is stage.worker("w0") else "w0"
    assert stage.copies.refusal(task, stage.worker(other)) == "it is an actor"
    stage.gates.open_all()
    await future


class Busy:
    def __init__(self) -> None:
        where()


@pytest.mark.parametrize("kind", ["sends", "takes"])
async def test_no_part_of_a_peer_to_peer_shuffle(stage: Stage, kind: str) -> None:
    barrier: Callable[..., Any] = lambda *_: None  # noqa: E731
    if kind == "sends":
        part = stage.client.submit(where, key="transfer")
        meets = stage.client.submit(barrier, part, key="shuffle-barrier-7")
    else:
        meets = stage.client.submit(barrier, key="shuffle-barrier-7")
        part = stage.client.submit(where, meets, key="unpack")
    await eventually(lambda: stage.gates.arrived, "it runs")
    other = "w1" if stage.task(part).processing_on is stage.worker("w0") else "w0"
    assert refused(stage, part, other) == "it is part of a peer-to-peer shuffle"
    stage.gates.open_all()
    await stage.client.gather([part, meets])


async def test_a_task_is_either_stolen_or_copied(stage: Stage) -> None:
    future = await stage.submit()
    task, stealing = stage.task(future), stage.running.scheduler.extensions["stealing"]
    stealing.move_task_request(task, stage.worker("w0"), stage.worker("w1"))
    assert refused(stage, future) == "it is being moved"
    await eventually(lambda: task not in stealing.in_flight, "the worker has refused: it runs")
    stealing.put_key_in_stealable(task)
    await stage.copy(future)
    assert task not in stealing.key_stealable
    # Somebody asks all the same, and the copy is quicker than the answer.
    stage.gates.open("w1")
    stealing.move_task_request(task, stage.worker("w0"), stage.worker("w1"))
    assert await future == "w1"
    assert not stealing.in_flight


async def test_not_on_a_worker_that_takes_no_tasks(stage: Stage) -> None:
    future = await stage.submit()
    stage.running.scheduler.handle_worker_status_change("paused", stage.worker("w1"), "test")
    assert refused(stage, future) == "that worker takes no tasks"


# -- in and out ------------------------------------------------------------------------------------------------------


def hooks(stage: Stage) -> dict[str, Any]:
    scheduler = stage.running.scheduler
    return {
        **scheduler.stream_handlers,
        "heartbeat": scheduler.handlers["heartbeat_worker"],
        "unregister": scheduler.handlers["unregister"],
        "remove_worker": scheduler.remove_worker,
        "remove_replicas": scheduler.request_remove_replicas,
        "plugins": set(scheduler.plugins),
        "own": {name for name in vars(scheduler) if name in ("remove_worker", "request_remove_replicas")},
    }


async def test_taken_out_dask_has_its_own_methods_and_the_original_goes_on(stage: Stage) -> None:
    stage.copies.uninstall()
    before = hooks(stage)
    stage.copies.install()
    future = await stage.copied()
    assert hooks(stage) != before
    stage.copies.uninstall()
    assert hooks(stage) == before
    assert stage.ends == ["given up"]
    assert stage.held("w1") == 0
    stage.gates.open("w1")  # too late: its result is stale to Dask
    await eventually(lambda: _knows_nothing(stage.running.workers[1]), "the copy's worker is rid of it")
    assert stage.task(future).state == "processing"
    stage.gates.open("w0")
    assert await future == "w0"
    assert stage.copies.refusal(stage.task(future), stage.worker("w1")) == "copies are off"


def _knows_nothing(worker: Worker) -> bool:
    return not worker.state.tasks


async def test_a_result_that_is_under_way_when_it_is_taken_out(stage: Stage) -> None:
    """The worker has finished the copy, and the scheduler has not heard of it yet."""
    future = await stage.copied()
    stage.gates.open("w1")
    worker = stage.running.workers[1]
    await eventually(lambda: future.key in worker.state.data or stage.ends, "the copy is done")
    stage.copies.uninstall()
    stage.gates.open("w0")
    assert await future in ("w0", "w1")
    assert len(stage.running.scheduler.workers) == 2


async def test_without_stealing_an_answer_that_is_under_way_finds_somebody() -> None:
    """An unknown message would close the connection to the worker."""
    with gates() as ours, dask.config.set({"distributed.scheduler.work-stealing": False}):
        async with cluster(workers=2) as running:
            plugin = ByHand()
            await plugin.start(running.scheduler)
            stage = Stage(running, await running.client(), plugin, ours)
            future = await stage.copied()
            stage.copies.give_up(future.key)
            stage.copies.uninstall()
            ours.open_all()
            assert await future == "w0"
            assert await _is_served(stage, "w1")
            assert len(running.scheduler.workers) == 2
            plugin.stop()


async def test_what_fails_in_here_is_told_and_dask_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    future = await stage.copied()

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(stage.copies, "_switch", broken)
    stage.gates.open("w1")
    await eventually(lambda: stage.plugin.failures, "it is told")
    stage.copies.uninstall()
    stage.gates.open("w0")
    assert await future == "w0"
    assert [str(error) for error in stage.plugin.failures] == ["broken"]
    stage.plugin.failures.clear()
