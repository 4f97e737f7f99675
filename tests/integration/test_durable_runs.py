"""Durable runs on a cluster in this process: what is stored, what is loaded again, and what happens when that fails."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask.delayed import delayed

from scheduler_plugins.io import results
from scheduler_plugins.io.results import ResultStore, name_of
from scheduler_plugins.on_dask import durable
from scheduler_plugins.on_dask.durable import Durable
from swarm.client import Swarm
from swarm.errors import DurabilityError
from swarm.protocol import PartDisabled
from tests.support.clusters import Cluster, Listener, closed_gate, cluster, held
from tests.support.waiting import eventually

times_run: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _no_task_has_run() -> Iterator[None]:
    times_run.clear()
    yield
    times_run.clear()


def slow(name: str, *parts: Any, seconds: float = 0.05) -> np.ndarray:
    """Dear enough to be stored, small enough to be quick."""
    threading.Event().wait(seconds)
    times_run[name] += 1
    return np.full(10, len(name) + sum(float(part[0]) for part in parts))


def quick(name: str, *parts: Any) -> float:
    times_run[name] += 1
    return float(sum(part[0] for part in parts))


def locked(name: str) -> Any:
    threading.Event().wait(0.05)
    times_run[name] += 1
    return threading.Lock()


def is_lock(what: Any) -> bool:
    return hasattr(what, "acquire")


GRAPH: dict[str, Any] = {
    "a": (slow, "A"),
    "b": (slow, "B", "a"),
    "c": (slow, "C", "a"),
    "d": (slow, "D", "b", "c"),
    "e": (quick, "E", "d", "c"),
}
"""`d` is 1 + (1 + 1) + (1 + 1) = 5, and `e` is `d` and `c`."""
RESULT = 7.0


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"state_directory": str(folder), **more}


def durable_of(running: Cluster) -> Durable:
    return running.plugin.durable


async def submitted(running: Cluster, swarm: Swarm, graph: dict[str, Any] | None = None, stored: int = 4) -> Any:
    """A durable run that is finished, with so many results in the store."""
    run = await swarm.submit(dict(graph or GRAPH), name="five", durable=True)
    await eventually(lambda: run.status == "finished", "it is finished")
    await eventually(lambda: durable_of(running).durable[run.id].stored == stored, f"{stored} results are stored")
    return run


async def test_what_is_dear_is_stored_and_removed_once_it_is_fetched(tmp_path: Path) -> None:
    async with cluster(workers=2, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        run = await submitted(running, swarm)
        store = ResultStore(str(tmp_path / "results"))
        names = store.names(run.id)
        assert {name_of(key) for key in "abcd"} <= set(names)
        assert name_of("e") not in names
        assert store.read(run.id, "d")[0] == 5.0
        [row] = (await swarm.durable_runs())["runs"]
        assert row["run"] == run.id
        assert await run.result() == RESULT
        assert store.runs() == []
        assert "swarm-durable" not in running.scheduler.plugins
        assert not running.plugin.guard.failures


async def test_a_run_goes_on_in_another_cluster_with_what_is_stored(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        run = await submitted(running, await running.swarm())
    assert times_run == dict.fromkeys("ABCDE", 1)
    async with cluster(workers=2, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        again = await swarm.resume("five")
        assert again.id == run.id
        assert await again.result() == RESULT
        assert (await again.info())["status"] == "finished"
        assert await eventually(lambda: not list((tmp_path / "results").iterdir()), "nothing is kept of it")
    assert times_run == {**dict.fromkeys("ABCD", 1), "E": 2}


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
async def test_a_damaged_result_is_computed_again_and_never_returned(tmp_path: Path, harm: str) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        run = await submitted(running, await running.swarm())
    file = tmp_path / "results" / run.id / name_of("d")
    async with cluster(workers=2, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        real = durable_of(running)._again

        async def after_harm(*arguments: Any, **options: Any) -> Any:
            # After the scheduler has looked, or a file that is gone would not be asked for.
            content = bytearray(file.read_bytes())
            content[-3] ^= 1
            if harm == "remove":
                file.unlink()
            else:
                file.write_bytes(content if harm == "flip" else content[:-3])
            durable_of(running)._again = real  # type: ignore[method-assign]
            return await real(*arguments, **options)

        durable_of(running)._again = after_harm  # type: ignore[method-assign]
        again = await swarm.resume(run.id)
        assert await again.result(timeout=20) == RESULT
        assert not running.plugin.guard.failures
    # What it needs is stored, so that nothing else ran again.
    assert times_run == {**dict.fromkeys("ABC", 1), "D": 2, "E": 2}


async def test_a_chain_of_damaged_results_is_computed_from_the_first_good_one(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        run = await submitted(running, await running.swarm())
    for key in "bcd":
        file = tmp_path / "results" / run.id / name_of(key)
        file.write_bytes(file.read_bytes()[:-1])
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        again = await (await running.swarm()).resume(run.id)
        assert await again.result(timeout=20) == RESULT
    assert times_run == {"A": 1, **dict.fromkeys("BCDE", 2)}


async def test_plain_dask_code_is_durable_in_the_context(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        async with swarm.durable("plain") as work:
            first = swarm.client.persist(delayed(slow, pure=False)("first"))
            second = delayed(slow, pure=False)("second", first)
            value = await swarm.client.compute(second)
            assert value[0] == 11.0
            await eventually(lambda: durable_of(running).durable[work.run].stored == 2, "both are stored")
        names = ResultStore(str(tmp_path / "results")).names(work.run)
        assert sum(name.startswith("graph-") for name in names) == 2
        plain = swarm.client.compute(delayed(slow, pure=False)("plain"))
        assert (await plain)[0] == 5.0
        assert durable_of(running).durable[work.run].stored == 2
        del first, second, plain
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        again = await (await running.swarm()).resume(work.run)
        values = await again.result()
    assert sorted(float(value[0]) for value in values.values()) == [5.0, 11.0]
    assert times_run == {"first": 1, "second": 1, "plain": 1}


async def test_nothing_is_kept_of_plain_code_whose_results_were_fetched(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        async with swarm.durable() as work:
            future = swarm.client.compute(delayed(slow, pure=False)("only"))
            assert (await future)[0] == 4.0
            future.release()
            del future
        assert work.run not in durable_of(running).durable
        assert ResultStore(str(tmp_path / "results")).runs() == []
        assert swarm.keeper.runs == {}


@pytest.mark.parametrize("patience_s", [5.0, 0.05], ids=["in time", "too late for its client"])
async def test_what_is_still_being_written_when_all_was_fetched_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    write, writes, may_write = ResultStore.write, threading.Event(), threading.Event()

    def slowly(self: ResultStore, *arguments: Any) -> Any:
        writes.set()
        may_write.wait(20.0)
        return write(self, *arguments)

    monkeypatch.setattr(durable, "WRITTEN_S", patience_s)
    monkeypatch.setattr(ResultStore, "write", slowly)
    folder = tmp_path / "results"
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        asyncio.get_running_loop().call_later(0.5, may_write.set)
        async with swarm.durable() as work:
            assert (await swarm.client.compute(delayed(slow, pure=False)("only")))[0] == 4.0
            await eventually(writes.is_set, "it is being written")
        assert may_write.is_set() == (patience_s > 1.0)
        assert work.run not in durable_of(running).durable
        await eventually(may_write.is_set, "the disk is there again")
        await eventually(lambda: "swarm-durable" not in running.scheduler.plugins, "nothing is written any more")
        await eventually(lambda: ResultStore(str(folder)).runs() == [], "nothing is left")


async def test_with_a_full_disk_a_run_goes_on_and_everybody_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(file: int, part: Any) -> int:
        if threading.current_thread().name.startswith("swarm-storing"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, part)

    monkeypatch.setattr(results.os, "write", full)
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        client = await running.client()
        swarm = await running.swarm(client)
        listener = Listener()
        swarm.add_event_handler(PartDisabled, listener)
        await running.hears(client)
        run = await swarm.submit(dict(GRAPH), durable=True)
        told = await listener.heard(PartDisabled, part=f"durability of run {run.id}")
        assert "No space left on device: make room" in told.reason
        assert f"durability of run {run.id}" in (await swarm.status())["off"]
        assert (await swarm.durable_runs())["runs"][0]["off"] == told.reason
        assert await run.result() == RESULT
        assert not running.plugin.guard.failures
    assert not list(tmp_path.glob("results/*/.new-*"))  # noqa: ASYNC240 - in a test nobody waits


async def test_a_result_that_cannot_be_pickled_is_computed_again(tmp_path: Path) -> None:
    graph = {"lock": (locked, "a lock"), "end": (slow, "END")}
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        graph["is"] = (is_lock, "lock")
        run = await swarm.submit(graph, keys=["is", "end"], durable=True)
        durable = durable_of(running)
        await eventually(lambda: durable.durable[run.id].unstorable == 1, "it can't be stored")
        store = ResultStore(str(tmp_path / "results"))
        await eventually(lambda: name_of("end") in store.names(run.id), "the other one is stored")
        assert not durable.durable[run.id].off
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        again = await (await running.swarm()).resume(run.id)
        values = await again.result()
        assert values["is"] is True
    assert times_run["END"] == 1


async def test_without_a_place_for_results_a_durable_run_is_refused() -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        swarm = await running.swarm()
        with pytest.raises(DurabilityError, match="start it with the setting state_directory or result_store"):
            await swarm.submit(dict(GRAPH), durable=True)
        with pytest.raises(DurabilityError, match="no place for results"):
            async with swarm.durable():
                pass
        assert await (await swarm.submit(dict(GRAPH))).result() == RESULT


async def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results").chmod(0o777)
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        with pytest.raises(Exception, match="may be written to by others, results are not safe there: chmod go-w"):
            await swarm.submit(dict(GRAPH), durable=True)


async def test_a_run_that_is_not_there_can_not_be_resumed(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        with pytest.raises(DurabilityError, match=r"has no run 'that'$"):
            await swarm.resume("that")


async def test_a_graph_that_is_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        run = await submitted(running, await running.swarm())
    file = tmp_path / "results" / run.id / "graph-000000"
    file.write_bytes(file.read_bytes()[:-1])
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        with pytest.raises(Exception, match=f"{file} has .* bytes, must have"):
            await (await running.swarm()).resume(run.id)


async def test_annotations_of_tasks_survive(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        with dask.annotate(retries=7):
            value = delayed(slow, pure=False)("noted")
        run = await swarm.submit([value, delayed(slow, pure=False)("stored")], durable=True)
        await eventually(lambda: run.status == "finished", "it is finished")
        durable = durable_of(running)
        await eventually(lambda: durable.durable[run.id].stored == 2, "both are stored")
        noted = next(key for key in run.futures if running.scheduler.tasks[key].annotations)
    (tmp_path / "results" / run.id / name_of(noted)).unlink()
    async with cluster(workers=0, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        again = await (await running.swarm()).resume(run.id)
        assert running.scheduler.tasks[noted].annotations == {"retries": 7}
        assert running.scheduler.tasks[noted].retries == 7
        await running.join(agents=True)
        await again.result()
    assert times_run == {"noted": 2, "stored": 1}


async def test_results_that_a_later_run_rests_on_are_kept(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        first = await swarm.submit({"first": (slow, "FIRST")}, durable=True)
        [future] = first.futures.values()
        with closed_gate() as gate:
            second = await swarm.submit(delayed(after, pure=False)(future), name="second", durable=True)
            assert (await first.result())[0] == 5.0
            durable = durable_of(running).durable
            await eventually(lambda: durable[second.id].needs == {first.id}, "the scheduler knows that")
            await eventually(lambda: durable[first.id].is_fetched, "the first one is fetched")
            store = ResultStore(str(tmp_path / "results"))
            await eventually(lambda: name_of("first") in store.names(first.id), "it stays, and is stored")
            gate.set()
            assert await second.result() == 5.0
        assert ResultStore(str(tmp_path / "results")).runs() == []
        assert not running.plugin.guard.failures


def after(parts: Any) -> float:
    return float(held(parts)[0])


async def test_a_part_that_is_off_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings=settings(tmp_path)) as running:
        swarm = await running.swarm()
        running.plugin.guard.switch_off("durability", "this version of distributed lacks something")
        with pytest.raises(DurabilityError, match="can't be durable here: this version of distributed lacks something"):
            await swarm.submit(dict(GRAPH), durable=True)


async def test_the_quota_removes_what_is_oldest_and_not_under_way(tmp_path: Path) -> None:
    store = ResultStore(str(tmp_path / "results"))
    for number, run in enumerate(("old", "older", "young")):
        store.write(run, "x", np.zeros(100_000))
        os.utime(tmp_path / "results" / run / name_of("x"), (1e9 - number, 1e9 - number))
        os.utime(tmp_path / "results" / run, (1e9 - number * (number < 2), 1e9 - number * (number < 2)))
    os.utime(tmp_path / "results" / "young")
    async with cluster(
        workers=1, agents=True, swarm=True, settings=settings(tmp_path, result_quota=1_700_000)
    ) as running:
        run = await submitted(running, await running.swarm())
        assert {each.run for each in store.runs()} == {"old", "young", run.id}
