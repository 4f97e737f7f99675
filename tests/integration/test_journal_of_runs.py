"""A real cluster with a `state_directory`: its runs are in the journal, plain work is not, and it fails alone."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dask.delayed import delayed

from scheduler_plugins.io.journal import FILE
from scheduler_plugins.io.recorded import LATEST, RecordedRun, read
from swarm.errors import JournalError
from tests.support.clusters import cluster
from tests.support.some_agents import Counter
from tests.support.waiting import eventually


@delayed(pure=False)  # type: ignore[untyped-decorator]
def made(size: int) -> bytes:
    return bytes(size)


@delayed(pure=False)  # type: ignore[untyped-decorator]
def together(*parts: bytes) -> int:
    return sum(map(len, parts))


async def written(path: Path, what: str = LATEST) -> RecordedRun:
    """The run, once the thread of the journal has written it."""

    def look() -> RecordedRun | None:
        try:
            return read(path, what)
        except JournalError:
            return None

    return await eventually(look, f"{what} is in the journal")


async def test_a_run_is_recorded_and_plain_work_is_not(tmp_path: Path) -> None:
    settings = {"state_directory": str(tmp_path / "state")}
    path = tmp_path / "state" / FILE
    async with cluster(workers=2, swarm=True, settings=settings) as running:
        swarm = await running.swarm()
        assert await swarm.client.submit(pow, 2, 3) == 8
        assert not path.exists(), "plain work needs no journal"
        assert (await swarm.status())["journal"] == str(path)
        run = await swarm.submit(together(*(made(1000) for _ in range(6))), name="parts")
        assert await run.result() == 6000
        await running.join(name="late")
        recorded = await written(path)
        assert not running.plugin.guard.failures
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (recorded.run, recorded.name) == (run.id, "parts")
    assert 0 < recorded.makespan_s < 30
    assert [(w.name, w.host, w.threads) for w in recorded.workers] == [("w0", "127.0.0.1", 1), ("w1", "127.0.0.1", 1)]
    parts = {task.key: task for task in recorded.tasks if task.function == "made"}
    [last] = [task for task in recorded.tasks if task.function == "together"]
    assert len(parts) == 6
    assert set(last.dependencies) == set(parts)
    assert [task for task in recorded.tasks if task.is_wanted] == [last]
    assert {task.worker for task in recorded.tasks} <= {worker.address for worker in recorded.workers}
    assert all(task.output_bytes >= 1000 and task.dependencies == () for task in parts.values())
    for task in recorded.tasks:
        assert task.start_s is not None
        assert recorded.submitted_at_s - 1 < task.start_s < recorded.submitted_at_s + recorded.makespan_s + 1
        assert 0 <= task.compute_s <= recorded.makespan_s
    moved = [task for task in recorded.tasks if task.transfers]
    assert moved == ([last] if len({task.worker for task in parts.values()}) == 2 else [])
    assert all(task.transfer_s > 0 for task in moved)


async def test_a_worker_that_joins_takes_part(tmp_path: Path) -> None:
    path = tmp_path / FILE
    async with cluster(workers=0, swarm=True, settings={"state_directory": str(tmp_path)}) as running:
        swarm = await running.swarm()
        run = await swarm.submit(made(10), name="waits")
        await eventually(lambda: running.plugin.runs.by_key, "the graph has arrived")
        await running.join(nthreads=3)
        await run.result()
        recorded = await written(path)
    assert [(worker.name, worker.threads) for worker in recorded.workers] == [("w0", 3)]


async def test_a_run_that_fails_is_recorded_as_such(tmp_path: Path) -> None:
    async with cluster(swarm=True, settings={"state_directory": str(tmp_path)}) as running:
        swarm = await running.swarm()
        good = await swarm.submit(made(10), name="good")
        await good.result()
        bad = await swarm.submit(delayed(divmod)(1, 0), name="bad")
        with pytest.raises(ZeroDivisionError):
            await bad.result()
    with pytest.raises(
        JournalError, match=rf"run {bad.id} ended with error \(.*ZeroDivisionError.*\); only a run that"
    ):
        read(tmp_path / FILE, bad.id)


async def test_the_last_entries_are_written_when_the_scheduler_closes(tmp_path: Path) -> None:
    async with cluster(swarm=True, settings={"state_directory": str(tmp_path)}) as running:
        swarm = await running.swarm()
        runs: list[Any] = [await swarm.submit(made(10), name=f"quick{i}") for i in range(5)]
        for run in runs:
            await run.result()
    assert [len(read(tmp_path / FILE, f"quick{i}").tasks) for i in range(5)] == [1] * 5


async def test_what_an_agent_changes_outlives_the_scheduler(tmp_path: Path) -> None:
    settings = {"state_directory": str(tmp_path / "state")}
    async with cluster(workers=1, agents=True, swarm=True, settings=settings) as running:
        orchestrator = (await running.swarm()).orchestrator
        await orchestrator.create_agent(Counter, "mine")
        assert await orchestrator.communicator.send_message("mine", "audit", wait_for_answer=True) == 1
        place = running.workers[0].address
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as database:
        (kept,) = database.execute("SELECT place, agent, what, details FROM changes WHERE agent = 'mine'").fetchall()
    assert kept == (place, "mine", "cores_lent", '{"cores": 2}')


async def test_a_journal_that_fails_is_switched_off_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = os.fspath(tmp_path / "file")
    async with cluster(swarm=True, settings={"state_directory": where, "monitoring_interval": 0.05}) as running:
        swarm = await running.swarm()
        run = await swarm.submit(made(10))
        assert len(await run.result()) == 10
        await eventually(lambda: not running.plugin.guard.is_on("journal"), "the journal is off")
        status = await swarm.status()
        assert list(status["off"]) == ["journal"]
        assert f"{where}/{FILE}" in status["off"]["journal"]
        again = await swarm.submit(made(20))
        assert len(await again.result()) == 20
        assert (await again.info())["status"] == "finished"
