"""The way most people use it: `swarm.connect(address)`, blocking calls, names of the module."""

from __future__ import annotations

import asyncio
import io
import operator
import threading
from collections.abc import Iterator

import dask.array as da
import pytest
from dask.delayed import delayed
from distributed import Client, LocalCluster
from rich.console import Console

import swarm
from swarm.client import Swarm
from swarm.errors import ConnectError, SettingsError
from swarm.protocol import WorkerJoined
from swarm.status import fetch, render
from tests.support.clusters import Listener, closed_gate, held
from tests.support.waiting import wait_until

LOCAL = {"processes": False, "threads_per_worker": 1, "protocol": "tcp://", "host": "127.0.0.1"}


@pytest.fixture
def address() -> Iterator[str]:
    """Of a plain Dask cluster in this process."""
    with LocalCluster(n_workers=2, dashboard_address="127.0.0.1:0", **LOCAL) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def connected(address: str) -> Iterator[Swarm]:
    with swarm.connect(address) as connected:
        yield connected


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    with closed_gate() as gate:
        yield gate


def printed(run: swarm.Run, timeout: float | None = None) -> str:
    console = Console(file=io.StringIO(), width=120)
    assert run.progress(console, timeout=timeout) is run
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -- connecting ----------------------------------------------------------------------------------------------------


def test_a_plain_cluster_is_not_yet_a_swarm() -> None:
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", **LOCAL) as plain:
        with pytest.raises(ConnectError, match=r"is plain Dask with 0 workers: .* run swarm\.connect\("):
            fetch(plain.scheduler_address)
        with swarm.connect(plain.scheduler_address):
            status = fetch(plain.scheduler_address)
        console = Console(file=io.StringIO(), width=120)
        render(status, console)
        assert isinstance(console.file, io.StringIO)
        assert "no workers yet: dask worker tcp://" in console.file.getvalue()


def test_connect_and_close(address: str) -> None:
    connected = swarm.connect(address)
    assert connected.is_connected
    assert repr(connected) == f"<Swarm at {address}>"
    assert swarm.current() is connected
    assert connected.page is not None
    connected.close()
    connected.close()
    assert not connected.is_connected


def test_a_client_that_exists_stays_open(address: str) -> None:
    with Client(address, set_as_default=False) as client:
        with Swarm(client) as connected:
            assert connected.submit({"a": (sum, [1, 2])}).result(timeout=20) == 3
        assert client.submit(sum, [1, 2]).result() == 3


NOWHERE = pytest.mark.parametrize("nowhere", ["tcp://127.0.0.1:1", "nonsense://x:1", "not an address"])


@NOWHERE
def test_the_status_of_nowhere(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.status.TIMEOUT_S", 0.3)
    with pytest.raises(ConnectError) as error:
        fetch(nowhere)
    assert len(str(error.value).splitlines()) == 1
    assert nowhere in str(error.value)


@NOWHERE
async def test_connect_to_nowhere(nowhere: str) -> None:
    # In a coroutine: a blocking `distributed.Client` that fails leaves its event loop behind (distributed 2026.8).
    with pytest.raises(ConnectError) as error:
        await swarm.connect(nowhere, timeout=0.3, asynchronous=True)
    assert len(str(error.value).splitlines()) == 1
    assert nowhere in str(error.value)


def test_options_that_do_not_fit(address: str) -> None:
    with pytest.raises(ConnectError, match="workers and threads_per_worker are for a local cluster"):
        swarm.connect(address, workers=3)
    with pytest.raises(SettingsError, match="max_agent"):
        swarm.connect(address, max_agent=3)


def test_without_a_swarm_there_is_nothing_to_submit_to() -> None:
    for attempt in (swarm.current, lambda: swarm.submit({"a": 1}), lambda: swarm.map(abs, [1])):
        with pytest.raises(ConnectError, match=r"^there is no swarm to submit to: call swarm\.connect\(\) first"):
            attempt()


def test_the_current_swarm_is_the_one_connected_last_that_is_open(address: str) -> None:
    with swarm.connect(address) as one:
        with swarm.connect(address) as two:
            assert swarm.current() is two
            assert swarm.submit({"a": (sum, [1, 2])}).result(timeout=20) == 3
            assert swarm.map(abs, [-1, -2]).result(timeout=20) == [1, 2]
        assert swarm.current() is one


# -- runs ----------------------------------------------------------------------------------------------------------


def test_results(connected: Swarm) -> None:
    run = connected.submit(da.ones((20, 20), chunks=5).sum())
    assert run.result(timeout=20) == 400
    wait_until(lambda: run.info()["status"] == "finished", "the scheduler knows")
    assert run.explain().lines()[0].startswith(f"Run {run.id} finished after ")
    workload = connected.submit("options", strikes=1, maturities=1, volatilities=1, batches=16)
    assert workload.verify(timeout=60).passed


async def test_await_a_run_of_a_blocking_swarm(connected: Swarm, gate: threading.Event) -> None:
    run = connected.submit({"a": (held, 7)})
    waiting = asyncio.ensure_future(_value(run))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    gate.set()
    assert await waiting == 7


async def _value(run: swarm.Run) -> object:
    return await run


async def test_a_blocking_and_an_asynchronous_swarm_side_by_side(address: str, connected: Swarm) -> None:
    async with swarm.connect(address, asynchronous=True) as other:
        assert await (await other.submit({"a": (sum, [1, 2])})) == 3
        assert await asyncio.to_thread(connected.submit({"b": (sum, [1, 3])}).result, 20) == 4
        assert await (await other.map(abs, [-3])) == [3]


def test_a_timeout_and_a_cancellation(connected: Swarm, gate: threading.Event) -> None:
    run = connected.submit({"a": (held, 1), "b": (held, "a")})
    with pytest.raises(TimeoutError, match=r"0 of 2 tasks are done, it goes on|does not say how far it is"):
        run.result(timeout=0.2)
    run.cancel()
    with pytest.raises(swarm.SwarmError, match="was cancelled"):
        run.result()
    gate.set()


def test_handlers(address: str) -> None:
    joined = Listener()
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", **LOCAL) as cluster,
        swarm.connect(cluster.scheduler_address) as connected,
    ):
        connected.add_event_handler("WorkerJoined", joined)
        topic = cluster.scheduler._broker._topics["swarm"]
        wait_until(lambda: connected.client.id in topic.subscribers, "the subscription is there")
        cluster.scale(1)
        wait_until(lambda: joined.of(WorkerJoined), "the worker joined")


# -- progress ------------------------------------------------------------------------------------------------------


def test_progress_until_the_end(connected: Swarm) -> None:
    said = printed(connected.submit({("part", i): (operator.add, i, 1) for i in range(8)}, name="parts"))
    assert "parts" in said
    assert "8/8" in said
    assert "✓" in said


def test_progress_for_a_while(connected: Swarm, gate: threading.Event) -> None:
    run = connected.submit({"a": (held, 1)})
    printed(run, timeout=0.3)
    assert run.status == "running"
    gate.set()
    assert "1/1" in printed(run)


def test_progress_of_a_run_that_fails_does_not_raise(connected: Swarm) -> None:
    said = printed(connected.submit({"bad": (operator.truediv, 1, 0)}))
    assert "✗" in said
    assert "1 failed" in said


def test_progress_of_a_run_that_is_cancelled(connected: Swarm, gate: threading.Event) -> None:
    run = connected.submit({"a": (held, 1)})
    run.cancel()
    assert "–" in printed(run)
    gate.set()


def test_progress_of_a_run_that_the_scheduler_does_not_follow(connected: Swarm) -> None:
    run = connected.submit({"a": (sum, [1, 2])})
    run.result(timeout=20)
    run.id = "another-one"
    assert "run another-one is not known" in printed(run)


def test_progress_does_not_wait_for_ever_for_a_scheduler_that_is_behind(
    connected: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = connected.submit({"a": (sum, [1, 2]), "b": (sum, ["a", 1])})
    run.result(timeout=20)
    behind = {**run.info(), "status": "running", "finished": 1}
    monkeypatch.setattr(run, "info", lambda: behind)
    monkeypatch.setattr("swarm.progress.LAG_S", 0.2)
    assert "1/2" in printed(run)


# -- Dask is still Dask --------------------------------------------------------------------------------------------


def test_dask_behaves_as_before(connected: Swarm) -> None:
    client = connected.client
    assert client.submit(pow, 2, 5).result() == 32
    assert client.gather(client.map(abs, [-1, 2, -3])) == [1, 2, 3]
    x = da.arange(100, chunks=10)
    assert client.compute(x.sum()).result() == 4950
    assert x.sum().compute(scheduler=client) == 4950
    persisted = client.persist(x + 1)
    assert persisted.sum().compute(scheduler=client) == 5050
    assert client.get({"a": 1, "b": (sum, ["a", 2])}, "b") == 3
    scattered = client.scatter([1, 2, 3])
    assert client.submit(sum, scattered).result() == 6
    broadcast = client.scatter({"key-of-mine": 5}, broadcast=True)
    assert client.submit(operator.add, broadcast["key-of-mine"], 1).result() == 6
    with pytest.raises(ZeroDivisionError):
        client.submit(operator.truediv, 1, 0).result()
    future = client.submit(delayed(abs), -1)
    future.cancel()
    assert future.cancelled()
    client.publish_dataset(mine=persisted)
    assert client.list_datasets() == ("mine",)
    client.unpublish_dataset("mine")
    client.set_metadata("note", 1)
    assert client.get_metadata("note") == 1
    assert client.run(lambda: 7) == dict.fromkeys(client.scheduler_info()["workers"], 7)


def test_plain_work_makes_no_runs(connected: Swarm) -> None:
    before = len(connected.status()["runs"])
    connected.client.submit(pow, 3, 3).result()
    da.ones(4, chunks=2).sum().compute(scheduler=connected.client)
    assert len(connected.status()["runs"]) == before
