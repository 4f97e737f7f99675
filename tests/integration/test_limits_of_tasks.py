"""Limits on real workers: what hangs is finished elsewhere, its slot is known as lost, nonsense fails at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import dask
import pytest
from distributed import Client, secede

from swarm.errors import SettingsError, TaskTimeoutError
from tests.support.clusters import Cluster, cluster
from tests.support.gates import Gates, gates, where
from tests.support.waiting import eventually

BEGAN: list[float] = []
"""When each try of `fails_twice` began; its workers live in this process."""


def fails_twice() -> str:
    BEGAN.append(time.monotonic())
    if len(BEGAN) < 3:
        raise OSError("not now")
    return "done"


@dataclass
class Stage:
    """Workers `w0` and `w1` with a thread each; a task hangs where the gate is closed."""

    running: Cluster
    client: Client
    gates: Gates

    @property
    def mind(self) -> Any:
        return self.running.plugin.mind

    @property
    def lost(self) -> dict[str, int]:
        return {str(worker.name): self.mind.held.lost(worker) for worker in self.running.scheduler.workers.values()}

    @property
    def first(self) -> str:
        """Where the first task hangs."""
        return next(iter(self.gates.arrived))

    def other(self) -> str:
        return "w1" if self.first == "w0" else "w0"

    def submit(self, task: Callable[..., Any] = where, *arguments: Any, **limits: Any) -> Any:
        with dask.annotate(**limits):
            return self.client.submit(task, *arguments, pure=False)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with gates() as ours:
        async with cluster(workers=2, swarm=True) as running:
            yield Stage(running, await running.client(), ours)
            assert not running.plugin.guard.failures
            ours.open_all()


async def test_a_task_that_hangs_is_finished_elsewhere_and_its_slot_is_known_as_lost(stage: Stage) -> None:
    future = stage.submit(swarm_timeout="0.5s", swarm_backoff="100ms")
    await eventually(lambda: stage.gates.arrived, "it runs")
    stage.gates.open(stage.other())
    assert await future == stage.other()
    assert stage.lost == {stage.first: 1, stage.other(): 0}
    # Dask thinks that both workers are idle; what is sent to the first would wait for ever.
    began_s = time.monotonic()
    others = await stage.client.gather([stage.submit() for _ in range(4)])
    assert set(others) == {stage.other()}
    assert time.monotonic() - began_s < 5.0
    stage.gates.open(stage.first)
    await eventually(lambda: not any(stage.lost.values()), "heartbeats no longer list it")
    stage.gates.close(stage.other())
    assert await stage.submit() == stage.first


async def test_after_the_last_try_it_fails_and_says_what_was_tried(stage: Stage) -> None:
    future = stage.submit(swarm_timeout=0.3, swarm_retries=1, swarm_backoff=0)
    after = stage.client.submit(str, future)
    with pytest.raises(TaskTimeoutError) as caught:
        await future
    error = caught.value
    assert {address for address, _ in error.attempts} == set(stage.running.scheduler.workers)
    assert all(0.3 <= ran_s < 1.5 for _, ran_s in error.attempts)
    assert f"task '{future.key}' ran longer than 0.3 s on each of 2 tries (0." in str(error)
    assert "allow more with dask.annotate(swarm_timeout=" in str(error)
    assert "\n" not in str(error)
    with pytest.raises(TaskTimeoutError):
        await after
    assert stage.lost == {"w0": 1, "w1": 1}


async def test_a_task_that_must_not_run_twice_is_not_tried_again(stage: Stage) -> None:
    future = stage.submit(swarm_timeout=0.3, swarm_once=True)
    with pytest.raises(TaskTimeoutError, match=r"on its only try .*; it must not run twice \(swarm_once\)"):
        await future
    assert sum(stage.gates.arrived.values()) == 1


@pytest.mark.parametrize("where", [None, ["w0"]], ids=["anywhere", "where Dask places it"])
async def test_with_a_backoff_it_rests_before_a_retry_of_dasks_own_too(stage: Stage, where: list[str] | None) -> None:
    async def rests(**limits: Any) -> list[float]:
        BEGAN.clear()
        with dask.annotate(**limits):
            assert await stage.client.submit(fails_twice, retries=2, workers=where, pure=False) == "done"
        first, second, third = BEGAN
        return [second - first, third - second]

    once, twice = await rests(swarm_backoff="400ms")
    assert 0.3 <= once < 0.9
    assert 0.6 <= twice < 1.5
    assert max(await rests()) < 0.2, "without one, Dask tries again at once"
    assert max(await rests(swarm_timeout="1m")) < 0.2


async def test_it_rests_before_it_runs_again(stage: Stage) -> None:
    future = stage.submit(swarm_timeout="300ms", swarm_backoff="1s")
    await eventually(lambda: stage.lost.get("w0") or stage.lost.get("w1"), "it was taken away")
    began_s = time.monotonic()
    stage.gates.open(stage.other())
    task = stage.running.scheduler.tasks[future.key]
    assert task.state == "queued"
    assert await stage.submit() == stage.other()  # others do not wait for it
    assert await future == stage.other()
    assert time.monotonic() - began_s > 0.6


async def test_a_task_that_dask_places_rests_too_and_goes_to_another_of_its_workers(stage: Stage) -> None:
    with dask.annotate(swarm_timeout="300ms", swarm_backoff="500ms"):
        future = stage.client.submit(where, pure=False, workers=["w0", "w1"])
    await eventually(lambda: stage.lost.get("w0") or stage.lost.get("w1"), "it was taken away")
    task: Any = stage.running.scheduler.tasks[future.key]
    assert task.state == "no-worker"
    stage.gates.open(stage.other())
    assert await future == stage.other()


async def test_waiting_for_a_thread_does_not_count(stage: Stage) -> None:
    blockers = [stage.submit(swarm_timeout=30) for _ in range(2)]
    await eventually(lambda: len(stage.gates.arrived) == 2, "both threads are busy")
    with dask.annotate(swarm_timeout="0.4s", swarm_retries=0):
        late = stage.client.submit(where, pure=False, workers=["w0"], allow_other_workers=False)
    task: Any = await eventually(lambda: stage.running.scheduler.tasks.get(late.key), "the scheduler knows it")
    await eventually(lambda: task.state == "processing", "it waits on its worker")
    sent_s = time.monotonic()
    await eventually(lambda: time.monotonic() - sent_s > 1.0, "it waits longer than it may run")
    stage.gates.open_all()
    stage.gates.open("w0")
    stage.gates.open("w1")
    assert await late == "w0"
    await stage.client.gather(blockers)


def away_and_back() -> str:
    secede()
    return where()


async def test_a_task_that_has_seceded_holds_no_thread(stage: Stage) -> None:
    future = stage.submit(away_and_back, swarm_timeout="0.5s", swarm_backoff=0)
    await eventually(lambda: stage.gates.arrived, "it runs")
    stage.gates.open(stage.other())
    assert await future == stage.other()
    assert not any(stage.lost.values())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"swarm_timeout": "soon"}, "swarm_timeout = 'soon' must be a number from 0.05 to 2592000 (seconds, or"),
        ({"swarm_timeout": 0}, "swarm_timeout = 0 must be a number"),
        ({"swarm_timeout": 1, "swarm_retries": -1}, "swarm_retries = -1 must be a whole number from 0 to 100"),
        ({"swarm_backoff": "a\nb"}, "swarm_backoff = 'a\\nb' must be a number from 0 to 3600"),
    ],
)
async def test_a_wrong_limit_fails_the_task_with_a_line_that_says_why(
    stage: Stage, limits: dict[str, Any], said: str
) -> None:
    blocked = stage.client.submit(where, pure=False)
    with dask.annotate(**limits):
        ready = stage.client.submit(where, pure=False)
        waiting = stage.client.submit(str, blocked, pure=False)
    for future in (ready, waiting):
        with pytest.raises(SettingsError) as caught:
            await future
        assert str(caught.value).startswith(f"annotation of task {future.key!r}: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    stage.gates.open_all()
    stage.gates.open("w0")
    stage.gates.open("w1")
    await blocked


async def test_retries_of_dask_go_on_as_they_do(stage: Stage) -> None:
    """An error is not a hang: it uses up Dask's retries, and none of ours."""
    stage.gates.open("w0", _boom_once)
    stage.gates.open("w1", _boom_once)
    _left.append(1)
    with dask.annotate(swarm_timeout=20, swarm_retries=0):
        future = stage.client.submit(where, pure=False, retries=1)
    assert await future in ("w0", "w1")
    assert not _left


_left: list[int] = []


def _boom_once() -> None:
    if _left:
        _left.pop()
        raise ValueError("boom")


async def test_the_settings_are_the_default_of_all_tasks() -> None:
    settings = {"task_timeout": "300ms", "task_retries": 0}
    with gates() as ours:
        async with cluster(workers=1, swarm=True, settings=settings) as running:
            client = await running.client()
            with pytest.raises(TaskTimeoutError, match=r"longer than 0.3 s on its only try"):
                await client.submit(where, pure=False)
            ours.open_all()
            await eventually(lambda: not running.plugin.mind.held.workers(), "the thread is free")
            with dask.annotate(swarm_timeout=None):
                future = client.submit(where, pure=False)
            ours.open("w0")
            assert await future == "w0"


async def test_a_cancelled_task_is_not_tried_again(stage: Stage) -> None:
    future = stage.submit(swarm_timeout="300ms", swarm_backoff="300ms")
    await eventually(lambda: any(stage.lost.values()), "it was taken away")
    arrived = sum(stage.gates.arrived.values())
    await future.cancel()
    await eventually(lambda: future.key not in stage.running.scheduler.tasks, "it is forgotten")
    stage.gates.open(stage.other())
    assert await stage.submit() == stage.other()
    assert sum(stage.gates.arrived.values()) == arrived + 1


async def test_when_placement_is_taken_out_who_rests_is_run_by_dask(stage: Stage) -> None:
    future = stage.submit(swarm_timeout="300ms", swarm_backoff="1h")
    await eventually(lambda: any(stage.lost.values()), "it was taken away")
    stage.gates.open_all()
    stage.gates.open("w0")
    stage.gates.open("w1")
    stage.mind.stop()
    assert await future in ("w0", "w1")
