"""The life of a run: result, failure, cancellation, loss, and what can be asked of it meanwhile and after."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import pytest
from dask.delayed import delayed

from swarm.errors import (
    MissingPackageError,
    RunCancelledError,
    RunFailedError,
    SchedulerLostError,
    SubmissionError,
    SwarmError,
    UnknownWorkloadError,
    VerificationError,
)
from swarm.protocol import RunEnded, RunSubmitted, WorkerJoined, WorkerLeft
from swarm.run import Run
from tests.support.clusters import Listener, closed_gate, cluster, held
from tests.support.waiting import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    with closed_gate() as gate:
        yield gate


@delayed  # type: ignore[untyped-decorator]
def doubled(x: Any) -> Any:
    return 2 * x


async def info_when(run: Run, **expected: Any) -> dict[str, Any]:
    """What the scheduler knows of a run, once it knows this."""

    async def fits() -> dict[str, Any]:
        info: dict[str, Any] = await run.info()
        return info if all(info[name] == value for name, value in expected.items()) else {}

    return await eventually(fits, f"{run} has {expected}")


# -- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ({"a": 1, "b": (sum, ["a", 2])}, 3),
        ({("a", 0): 1, ("a", 1): (sum, [1, 2]), "b": (sum, [("a", 0), ("a", 1)])}, 4),
        (doubled(doubled(5)), 20),
        (da.arange(100, chunks=10).sum(), 4950),
        ([doubled(1), da.ones(4, chunks=2).sum(), doubled(2)], [2, 4.0, 4]),
        ((doubled(2), doubled(1), doubled(2)), (4, 2, 4)),
    ],
)
async def test_results(what: Any, answer: Any) -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit(what)
        assert await run.result(timeout=20) == answer
        assert run.status == "finished"
        assert await run == answer
        assert await run.result(timeout=0) == answer
        info = await info_when(run, status="finished")
        assert info["finished"] == info["tasks"] > 0
        assert info["elapsed_s"] > 0


async def test_the_keys_that_are_asked_for() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": 1, "b": (sum, ["a", 2])}, keys=["a", "b"])
        assert await run == {"a": 1, "b": 3}


async def test_a_workload_is_verified() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit("options", strikes=1, maturities=1, volatilities=1, batches=16)
        assert (await run.verify(timeout=60)).passed
        plain = await connected.submit({"a": 1})
        with pytest.raises(VerificationError, match="is no workload"):
            plain.verify()


async def test_map() -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.map(pow, [1, 2, 3], [2, 2, 2])
        assert run.name == "pow"
        assert await run == [1, 4, 9]
        named = await connected.map(lambda x, y: x + y, range(3), name="plus", y=10)
        assert named.name == "plus"
        assert await named == [10, 11, 12]
        with pytest.raises(SubmissionError, match="the list is empty"):
            connected.map(pow, [], [])


async def test_what_is_refused_is_refused_before_anything_is_sent() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        with pytest.raises(UnknownWorkloadError):
            connected.submit("kmean")
        with pytest.raises(SubmissionError):
            connected.submit(3)
        assert not running.plugin.runs._runs


async def test_a_graph_that_cannot_be_sent_leaves_no_run_behind() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        with pytest.raises(SubmissionError, match=r"^the graph of graph can't be sent: [^\n]*lock"):
            await connected.submit({"lock": (id, threading.Lock())})
        (known,) = running.plugin.runs._runs.values()
        assert known.status == "error"
        assert "can't be sent" in known.reason
        assert not running.plugin.runs._awaited


async def test_persisted_work_goes_on_as_a_run() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        persisted = connected.client.persist(da.ones(10, chunks=5))
        run = await connected.submit(persisted + 1)
        assert (await run).sum() == 20
        await info_when(run, status="finished")


async def test_the_same_twice_are_two_runs() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        x = da.arange(10, chunks=5).sum()
        one, two = await asyncio.gather(connected.submit(x), connected.submit(x))
        assert one.id != two.id
        assert (await one, await two) == (45, 45)
        for run in (one, two, await connected.submit(x)):
            await info_when(run, status="finished")
        assert not running.plugin.runs.by_key


# -- not in time ---------------------------------------------------------------------------------------------------


async def test_a_result_that_is_not_there_in_time(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": 1, "b": (held, "a")})
        await info_when(run, finished=1)
        with pytest.raises(TimeoutError) as error:
            await run.result(timeout=0.05)
        assert str(error.value) == f"run {run.id} is not finished after 0.05 s: 1 of 2 tasks are done, it goes on"
        assert run.status == "running"
        assert repr(run) == f"<Run {run.id}: running>"
        gate.set()
        assert await run == 1


async def test_without_workers_the_timeout_says_so() -> None:
    async with cluster(workers=0, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (sum, [1, 2])})
        await info_when(run, status="running")
        with pytest.raises(TimeoutError, match=r"0 of 1 tasks are done, it goes on; has the cluster workers\?$"):
            await run.result(timeout=0.05)
        await running.join()
        assert await run == 3


async def test_a_task_that_raises_a_timeout_of_its_own_has_failed() -> None:
    def late() -> None:
        raise TimeoutError("the database is slow")

    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (late,)})
        with pytest.raises(TimeoutError, match="the database is slow"):
            await run.result(timeout=20)
        assert run.status == "error"


# -- failure -------------------------------------------------------------------------------------------------------


def divided(x: int, y: int) -> float:
    return x / y


async def test_an_error_comes_with_a_note_that_says_where() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": 1, ("bad", 0): (divided, "a", 0), "c": (str, ("bad", 0))})
        with pytest.raises(ZeroDivisionError) as error:
            await run
        (worker,) = running.workers
        assert error.value.__notes__ == [f"swarm: run {run.id} failed on worker {worker.address} at 'c'"]
        assert any(entry.name == "divided" for entry in error.traceback)
        assert run.status == "error"
        info = await info_when(run, status="error")
        assert (info["finished"], info["erred"], info["failed_on"]) == (1, 2, worker.address)
        assert info["reason"] == "ZeroDivisionError('division by zero')"
        lines = (await run.explain()).lines()
        assert lines[0].startswith(f"Run {run.id} failed after ")
        assert lines[1] == "Reason: ZeroDivisionError('division by zero')"


async def test_an_error_does_not_wait_for_the_rest(gate: threading.Event) -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"slow": (held, 1), "bad": (divided, 1, 0)})
        with pytest.raises(ZeroDivisionError):
            await run.result(timeout=20)
        gate.set()


async def test_a_package_of_ours_that_a_worker_lacks() -> None:
    def needs() -> None:
        raise ModuleNotFoundError("No module named 'workloads'", name="workloads.graphs")

    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (needs,)})
        with pytest.raises(MissingPackageError) as error:
            await run
        assert len(str(error.value).splitlines()) == 1
        assert running.workers[0].address in str(error.value)


# -- cancellation --------------------------------------------------------------------------------------------------


async def test_cancel(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        connected = await running.swarm()
        listener = Listener()
        connected.add_event_handler("*", listener)
        await running.hears(connected.client)
        run = await connected.submit({"a": (held, 1), "b": (held, "a"), "c": (held, "b")})
        await info_when(run, status="running")
        waiting = asyncio.ensure_future(run.result())
        await run.cancel()
        with pytest.raises(RunCancelledError, match=f"^run {run.id} was cancelled$"):
            await waiting
        assert run.status == "cancelled"
        info = await run.info()
        assert (info["status"], info["reason"]) == ("cancelled", "cancelled by its client")
        ended = await listener.heard(RunEnded)
        assert (ended.run, ended.status) == (run.id, "cancelled")
        assert not running.plugin.runs.by_key
        gate.set()
        await eventually(lambda: not running.scheduler.tasks, "Dask forgets the tasks")
        assert await (await connected.submit({"next": (sum, [1, 2])})) == 3


async def test_a_run_that_nobody_holds_any_more_is_cancelled(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (held, 1)})
        await info_when(run, status="running")
        known = running.plugin.runs.get(run.id)
        assert known is not None
        del run
        await eventually(lambda: known.status == "cancelled", "the run is cancelled")
        assert known.reason == "nobody wants its result any more"
        gate.set()


async def test_what_somebody_else_cancels_says_why(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (held, 1)})
        await info_when(run, status="running")
        await connected.client.cancel(list(run.futures.values()))
        with pytest.raises(RunCancelledError, match=f"^run {run.id} was cancelled"):
            await run
        info = await info_when(run, status="cancelled")
        assert info["reason"] == "nobody wants its result any more"
        gate.set()


async def test_the_runs_of_a_client_that_leaves_end(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        client = await running.client()
        connected = await running.swarm(client)
        run = await connected.submit({"a": (held, 1)})
        await info_when(run, status="running")
        known = running.plugin.runs.get(run.id)
        assert known is not None
        await client.close()
        await eventually(lambda: known.status == "cancelled", "the run is cancelled")
        assert not running.plugin.runs.by_key
        gate.set()


# -- loss ----------------------------------------------------------------------------------------------------------


async def test_a_scheduler_that_goes_away(gate: threading.Event) -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (sum, [1, 2]), "b": (held, 1)})
        await info_when(run, finished=1)
        waiting = asyncio.ensure_future(run.result())
        await asyncio.sleep(0)
        await running.scheduler.close()
        with pytest.raises(SchedulerLostError) as error:
            await waiting
        assert str(error.value).startswith(f"the scheduler at {running.address} went away during run {run.id} (")
        assert str(error.value).endswith("start it again, connect, and submit again")
        assert run.status == "lost"
        with pytest.raises(SchedulerLostError, match="connect again"):
            await run.info()
        with pytest.raises(SchedulerLostError, match="connect again"):
            await connected.submit({"c": 1})
        gate.set()


async def test_a_worker_that_goes_away_is_made_up_for(gate: threading.Event) -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": (sum, [1, 2]), "b": (held, "a")})
        await info_when(run, finished=1)
        holder = next(iter(running.scheduler.tasks["a"].who_has or ()))
        victim = next(worker for worker in running.workers if worker.address == holder.address)
        await victim.close(executor_wait=False)
        gate.set()
        assert await run == 3
        info = await info_when(run, status="finished")
        assert (info["finished"], info["recomputed"]) == (2, 1)
        explanation = await run.explain()
        assert [event.worker for event in explanation.events if isinstance(event, WorkerLeft)] == [victim.address]
        said = str(explanation)
        assert "1 tasks were computed again, because their results had been lost." in said
        assert f"meanwhile: worker {victim.address} left" in said


# -- what a run says of itself -------------------------------------------------------------------------------------


async def test_explain_says_what_ran_where_and_what_happened(gate: threading.Event) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({("part", 0): (held, 1), ("part", 1): (held, 2), "total": (sum, [("part", 0)])})
        await info_when(run, status="running")
        await running.heartbeat()
        await running.join(name="late")
        during = (await run.explain()).lines()
        assert during[0].startswith(f"Run {run.id} is running after ")
        gate.set()
        await run
        await info_when(run, status="finished")
        explanation = await run.explain()

        assert explanation.facts["functions"]["part"]["tasks"] == 2
        assert explanation.facts["peak_worker_memory_percent"] > 0
        first, *rest = explanation.lines()
        assert first.startswith(f"Run {run.id} finished after ")
        assert first.endswith("3 of 3 tasks done, 0 failed.")
        assert any(line.startswith("  part: 2 tasks, ") for line in rest)
        assert any(line.startswith(f"  on w0 ({running.workers[0].address}): ") for line in rest)
        assert f"  meanwhile: worker late ({running.workers[1].address}) joined" in rest
        (late,) = (event for event in explanation.events if isinstance(event, WorkerJoined))
        assert late.name == "late"

        await running.join(name="after-the-end")
        again = await run.explain()
        assert again.facts["elapsed_s"] == explanation.facts["elapsed_s"]
        assert "after-the-end" not in str(again)


async def test_a_run_that_the_scheduler_does_not_know() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        run = await connected.submit({"a": 1})
        await run
        running.plugin.runs._runs.clear()
        for question in (run.info, run.explain):
            with pytest.raises(RunFailedError, match=f"^run {run.id} is not known to this scheduler$"):
                await question()


async def test_events_of_a_run() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        listener = Listener()
        connected.add_event_handler("*", listener)
        await running.hears(connected.client)
        run = await connected.submit({"a": 1, "b": (sum, ["a", 1])}, name="mine")
        await run
        submitted, ended = await listener.heard(RunSubmitted), await listener.heard(RunEnded)
        assert (submitted.run, submitted.name, submitted.tasks) == (run.id, "mine", 2)
        assert submitted.client == connected.client.id
        assert (ended.run, ended.status, ended.reason) == (run.id, "finished", "")
        (row,) = (await connected.status())["runs"]
        assert (row["name"], row["status"], row["finished"]) == ("mine", "finished", 2)


async def test_progress_is_not_for_coroutines() -> None:
    async with cluster(swarm=True) as running:
        run = await (await running.swarm()).submit({"a": 1})
        with pytest.raises(SwarmError, match=r"use `await run.info\(\)`"):
            run.progress()
        await run


async def test_an_end_that_is_none_is_refused() -> None:
    async with cluster(swarm=True) as running:
        connected = await running.swarm()
        with pytest.raises(SwarmError, match="status is 'running', must be one of finished, error, cancelled, lost"):
            await connected.ask("swarm_end_run", run="r", status="running", reason="")


async def test_two_swarms_on_one_cluster(gate: threading.Event) -> None:
    async with cluster(workers=2, swarm=True) as running:
        one, two = await running.swarm(), await running.swarm()
        x = doubled(21)
        runs = [await one.submit(x, name="first"), await two.submit(x, name="second")]
        assert [await run for run in runs] == [42, 42]
        kept = await one.submit({"held": (held, 1)})
        same = await two.submit({"held": (held, 1)})
        await info_when(same, status="running")
        await kept.cancel()  # takes nothing from the other client
        gate.set()
        assert await same == 1
        names = {row["name"]: row["status"] for row in (await two.status())["runs"]}
        assert names["first"] == names["second"] == "finished"


async def test_a_task_may_submit_runs_of_its_own(tmp_path: Path) -> None:
    async with cluster(workers=2, swarm=True) as running:
        connected = await running.swarm()

        def outer(cluster_address: str) -> Any:
            import swarm

            with swarm.connect(cluster_address) as inner:
                return inner.submit({"inner": (sum, [1, 2])}).result(timeout=20)

        assert await (await connected.submit({"outer": (outer, running.address)})) == 3
