"""Why tasks go where they go, asked of real clusters: done, running, waiting; tasks, workers, and what is not known."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler_plugins.io import recorded
from scheduler_plugins.io.journal import FILE
from swarm.errors import UnknownKeyError
from swarm.explain import Account
from tests.support.clusters import closed_gate, cluster, held
from tests.support.waiting import eventually


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    with closed_gate() as gate:
        yield gate


def added(*numbers: int) -> int:
    return sum(numbers)


async def explained(swarm: Any, what: Any, **facts: Any) -> Account:
    """The account, once it says so of what the task waits for."""

    async def fits() -> Any:
        try:
            account: Account = await swarm.explain(what)
        except UnknownKeyError:  # what is submitted comes a moment later
            return None
        waits = account.facts.get("waits") or {}
        return account if facts.items() <= waits.items() else None

    found: Account = await eventually(fits, f"{what} waits as told: {facts}")
    return found


def whats(account: Account) -> list[str]:
    return [event.what for event in account.happened()]


async def test_a_task_that_is_done_by_key_beginning_and_future() -> None:
    async with cluster(workers=2, swarm=True) as running:
        swarm = await running.swarm()
        one, two = swarm.client.submit(added, 1, key="one-x"), swarm.client.submit(added, 2, key="two-x")
        three = swarm.client.submit(added, one, two, key=("three", 0, 1))
        assert await three == 3
        accounts = [await swarm.explain(what) for what in (three, "('three', 0, 1)", "('three'", ("three", 0, 1))]
        assert {account.facts["key"] for account in accounts} == {"('three', 0, 1)"}
        last = accounts[-1]
        assert whats(last) == ["ready", "given", "done"]
        assert last.facts["events"][0]["last_input"] in ("one-x", "two-x")
        assert last.facts["events"][1]["worker"] in last.facts["names"]
        assert "added" in last.facts["function"]
        assert {"in the pool", "computing"} <= {part.name for part in last.parts()}
        assert (await swarm.explain("one")).facts["key"] == "one-x"
        assert not running.plugin.guard.failures


async def test_what_is_over_is_remembered_when_nobody_wants_it_any_more() -> None:
    async with cluster(swarm=True) as running:
        swarm = await running.swarm()
        run = await swarm.submit({"a": (added, 1), "b": (added, "a", 2)}, name="sums")
        assert await run == 3
        run.futures.clear()
        await eventually(lambda: not running.scheduler.tasks, "the scheduler has forgotten all tasks")
        account = await run.explain("a")
        assert (account.facts["state"], whats(account)) == ("forgotten", ["ready", "given", "done"])
        assert (await run.explain()).facts["run"] == run.id


async def test_what_tasks_wait_for_and_where_they_would_go(gate: threading.Event) -> None:
    async with cluster(workers=1, swarm=True) as running:
        swarm = await running.swarm()
        client = swarm.client
        runs = client.submit(held, 1, key="runs-0")
        at_work = await explained(swarm, "runs-0", **{"for": "its result"})
        assert at_work.facts["waits"]["worker"] == running.workers[0].address
        assert at_work.heads[0].startswith("runs-0 (tests.support.clusters.held) runs on w0 for ")
        queue = [client.submit(held, number, key=f"queued-{number}") for number in range(3)]
        after = client.submit(added, runs, *queue, key="after-0")
        bound = client.submit(added, 1, key="bound-0", resources={"moon": 1})
        last = (await explained(swarm, "queued-2", **{"for": "a worker"})).facts["waits"]
        assert last["pool"] > last["ahead"] >= 0
        assert last["would_go_to"] == running.workers[0].address
        lacking = (await explained(swarm, after, **{"for": "inputs"})).facts["waits"]
        assert lacking["count"] == 4
        assert {"runs-0", "queued-2"} <= {need["key"] for need in lacking["some"]}
        nowhere = await explained(swarm, bound, **{"for": "a worker that it may run on"})
        assert "resources moon 1" in nowhere.heads[0]
        worker = await swarm.explain("w0")
        assert worker.facts == (await swarm.explain(running.workers[0].address)).facts | {
            name: worker.facts[name] for name in ("at_s", "runs", "free_in_s", "factor", "doubt")
        }
        assert [run["key"] for run in worker.facts["runs"]] == ["runs-0"]
        await bound.cancel()
        gate.set()
        assert await after == 4
        assert not running.plugin.guard.failures


async def test_what_is_not_known_is_told_with_what_is_near() -> None:
    async with cluster(swarm=True) as running:
        swarm = await running.swarm()
        with pytest.raises(UnknownKeyError, match=r"no task or worker 'x' \(there are no tasks\)"):
            await swarm.explain("x")
        futures = [swarm.client.submit(added, number, key=f"added-{number}0") for number in range(5)]
        await swarm.client.gather(futures)
        with pytest.raises(UnknownKeyError, match=r"no task or worker 'added-03'; did you mean added-\d0\?"):
            await swarm.explain("added-03")
        with pytest.raises(UnknownKeyError, match=r"5 tasks begin with 'added-' \(.*, …\): give more of the key"):
            await swarm.explain("added-")
        with pytest.raises(UnknownKeyError, match=r"tasks begin with added\)"):
            await swarm.explain("('zzz', 1)")
        for odd in (5, 2.5, None, b"x", ("x", 1), "(", "()", "('a', [1])", ["x"]):
            with pytest.raises(UnknownKeyError):
                await swarm.explain(odd)
        assert not running.plugin.guard.failures


async def test_a_scheduler_whose_placement_is_off_says_so() -> None:
    async with cluster(swarm=True, settings={"load_balancing": False}) as running:
        swarm = await running.swarm()
        future = swarm.client.submit(added, 1, key="one")
        assert await future == 1
        account = await swarm.explain("one")
        has, off = account.heads
        assert has.endswith("has its result on w0; how it came about is not remembered.")
        assert off == "Dask places tasks by its own rules here: the setting load_balancing is off."
        assert (await swarm.explain("w0")).facts["kind"] == "worker"


async def test_the_journal_tells_it_when_the_scheduler_is_gone(tmp_path: Path) -> None:
    settings = {"state_directory": str(tmp_path)}
    async with cluster(swarm=True, settings=settings) as running:
        swarm = await running.swarm()
        run = await swarm.submit({("a", 1): (added, 1), "b": (added, ("a", 1), 2)}, name="sums")
        assert await run == 3
        live = await swarm.explain("b")
    told = Account(recorded.explain(tmp_path / FILE, "sums", "b"))
    assert told.facts["events"] == list(live.facts["events"])
    assert told.facts["names"] == live.facts["names"]
    assert told.happened()[0].words.endswith(": ('a', 1)")
    assert recorded.explain(tmp_path / FILE, run.id, "('a'")["key"] == "('a', 1)"
    with pytest.raises(UnknownKeyError, match=r"no task or worker 'zzz' in run sums-.* of the journal \(tasks begin"):
        recorded.explain(tmp_path / FILE, "latest", "zzz")
    with pytest.raises(UnknownKeyError, match="2 tasks of run"):
        recorded.explain(tmp_path / FILE, "latest", "")
