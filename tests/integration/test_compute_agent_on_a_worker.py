from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarm.agents.kinds import pinning
from swarm.agents.kinds.compute import ComputeAgent
from tests.support.agent_alone import Alone
from tests.support.clusters import cluster
from tests.support.waiting import eventually

OPTIONS = {"workload": "options", "parameters": {"batches": 8, "batches_per_task": 2}, "wait_s": 25.0}


async def test_it_submits_to_the_cluster_and_leaves_the_result_there() -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        client = await running.client()
        async with Alone(ComputeAgent("computer", warm_up=False), dask=running.workers[0]) as it:
            answer = await it.asks("execute_workload", {**OPTIONS, "where": "cluster", "keep": True})
            assert answer["state"] == "finished", answer
            assert answer["verified"], answer["verification"]
            assert answer["done"] == answer["tasks"] > 1
            assert answer["cores"] == 1
            assert answer["key"] in running.workers[0].data
            named = [run.name for run in running.plugin.runs._runs.values()]
            assert named == ["options"]
            assert await it.asks("release", {"job": answer["job"]}) is True
            await eventually(lambda: answer["key"] not in running.workers[0].data, "the result is let go of")
            assert await it.asks("release", {"job": answer["job"]}) is False
        assert client.status == "running"


async def test_what_is_computed_here_can_stay_on_the_worker() -> None:
    async with cluster(workers=1) as running:
        worker = running.workers[0]
        async with Alone(ComputeAgent("computer", warm_up=False), dask=worker) as it:
            answer = await it.asks("execute_workload", {**OPTIONS, "where": "here", "keep": True})
            assert answer["verified"]
            assert answer["key"] in worker.data
        await eventually(lambda: not worker.data, "the result goes with the agent")


async def test_the_threads_of_the_worker_are_pinned_and_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pinning.tempfile, "gettempdir", lambda: str(tmp_path))
    if pinning.cpu_limit_cores() is not None:
        monkeypatch.setattr(pinning, "cpu_limit_cores", lambda root: None)
    async with cluster(workers=1) as running:
        client = await running.client()
        async with Alone(ComputeAgent("computer", warm_up=False, pin="cores"), dask=running.workers[0]) as it:
            thread = await client.submit(_thread)
            await it.cycle()
            assert len(await client.submit(_cores, pure=False)) == 1
            told = (await it.asks("status"))["pinning"]
            assert list(told["threads"]) == [str(thread)]
        assert await client.submit(_cores, pure=False) == os.sched_getaffinity(0)
        assert [what for what, _ in it.audited] == ["pin_thread", "unpin_thread"]


def _thread() -> int:
    import threading

    return threading.get_native_id()


def _cores() -> set[int]:
    return os.sched_getaffinity(0)
