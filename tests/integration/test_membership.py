"""How swarm comes to a scheduler and its workers, and how those that do not fit are told so."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable
from typing import Any

import dask
import pytest
from distributed import Scheduler, Worker
from distributed.core import Status

import swarm
from swarm import config_sources, errors
from swarm.agents import host, starting
from swarm.client import Swarm
from swarm.config import resolve
from swarm.errors import MissingPackageError, SettingsConflictError, SettingsError, SwarmError, VersionMismatchError
from swarm.protocol import AgentRefused, AgentStarted
from tests.support.clusters import ANYWHERE, Cluster, cluster, own_settings
from tests.support.waiting import eventually

VERSION = swarm.__version__


def published(running: Cluster, kind: type[Any]) -> list[Any]:
    return [event for event in running.plugin.loop.history if isinstance(event, kind)]


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    said = str(error.value)
    assert len(said.splitlines()) == 1
    return said


# -- who brings swarm where ----------------------------------------------------------------------------------------


async def test_the_preload_of_the_scheduler() -> None:
    with dask.config.set({"distributed.scheduler.preload": ["scheduler_plugins"]}):
        scheduler = await Scheduler(**ANYWHERE)
    async with scheduler:
        assert scheduler.task_metadata["swarm"] == {"version": VERSION, "schema": 1}
        assert "swarm" in scheduler.plugins
        assert "swarm" in scheduler.extensions


async def test_a_plain_scheduler_gets_its_side_from_the_first_agent() -> None:
    async with cluster(workers=0) as running:
        assert "swarm" not in running.scheduler.plugins
        worker = await running.join(agents=True)
        assert running.plugin._sender == f"worker {worker.address}"
        (started,) = published(running, AgentStarted)
        assert (started.worker, started.version, started.agents) == (worker.address, VERSION, ("resource", "storing"))


async def test_a_plain_scheduler_gets_its_side_from_the_first_client() -> None:
    async with cluster(workers=2) as running:
        connected = await running.swarm()
        assert running.plugin._sender == f"client {connected.client.id}"
        assert all("swarm" in worker.extensions for worker in running.workers)
        assert {started.worker for started in published(running, AgentStarted)} == {w.address for w in running.workers}


async def test_the_settings_of_the_first_agent_are_those_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_worker = config_sources.load(monitoring_interval="250ms")
    monkeypatch.setattr(host, "config_sources", types.SimpleNamespace(load=lambda: on_the_worker))
    async with cluster(workers=0) as running:
        worker = await running.join(agents=True)
        assert running.plugin.resolved.settings.monitoring_interval == 0.25
        assert running.plugin.resolved.origin["monitoring_interval"] == f"worker {worker.address}"
        assert (await running.swarm()).settings.monitoring_interval == 0.25


async def test_several_agents_and_clients_at_the_same_time() -> None:
    async with cluster(workers=1) as running:
        await asyncio.gather(
            running.join(agents=True, name="x"),
            running.join(agents=True, name="y"),
            running.swarm(),
            running.swarm(),
        )
        await running.join(agents=True, name="z")
        assert [name for name in running.scheduler.plugins if name == "swarm"] == ["swarm"]
        await eventually(lambda: all("swarm" in w.extensions for w in running.workers), "all workers have agents")
        assert sorted(started.worker for started in published(running, AgentStarted)) == sorted(
            w.address for w in running.workers
        )


async def test_workers_that_join_after_a_client_connected_get_agents() -> None:
    async with cluster(workers=0, swarm=True) as running:
        await running.swarm()
        worker = await running.join()
        await eventually(lambda: "swarm" in worker.extensions, "the agents are there")
        assert running.plugin.members.has_agents(worker.address)


async def test_a_worker_that_brings_agents_is_waited_for_not_given_others(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = host.start

    async def counted(worker: Worker) -> None:
        started.append(worker.address)
        await start(worker)

    async with cluster(workers=0, swarm=True) as running:
        await running.swarm()  # from now on, the scheduler gives agents to whoever joins
        monkeypatch.setattr(host, "start", counted)
        worker = await running.join(agents=True)
        await running.plugin.members.install_agents()
        assert started == [worker.address]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Nobody has imported what agents need before this is set."""
    event = asyncio.Event()

    async def import_slowly(function: Callable[..., Any], *arguments: Any) -> None:
        await event.wait()
        function(*arguments)

    monkeypatch.setattr(starting, "offload", import_slowly)
    return event


def with_preload(running: Cluster) -> Worker:
    return Worker(running.address, preload=["swarm.agents"], dashboard=False, host="127.0.0.1", name="later")


async def test_a_worker_that_takes_the_place_of_another_joins_before_its_agents_are_imported(
    monkeypatch: pytest.MonkeyPatch, imported: asyncio.Event
) -> None:
    monkeypatch.setattr(starting, "takes_a_place", lambda worker: True)
    async with cluster(workers=0, swarm=True) as running:
        worker = await running.join()
        await running.stack.enter_async_context(with_preload(running))
        later = running.scheduler.aliases["later"]
        client = await running.client()
        assert await client.submit(sum, [1, 2], workers=[later], pure=False) == 3
        assert not running.plugin.members.has_agents(later)
        installed = asyncio.create_task(running.plugin.members.install_agents())  # to `worker`; waits for the others
        await eventually(lambda: running.plugin.members.has_agents(worker.address), "the other one has agents")
        assert not running.plugin.members.has_agents(later)
        imported.set()
        assert await installed == {}
        assert running.plugin.members.has_agents(later)


async def test_a_worker_of_a_new_cluster_joins_when_they_are_imported(imported: asyncio.Event) -> None:
    async with cluster(workers=0, swarm=True) as running:
        joins = asyncio.create_task(running.stack.enter_async_context(with_preload(running)))
        await asyncio.sleep(0.3)
        assert "later" not in running.scheduler.aliases
        imported.set()
        worker = await joins
        await eventually(lambda: running.plugin.members.has_agents(worker.address), "its agents have started")


async def test_without_a_client_a_plain_worker_stays_plain() -> None:
    async with cluster(workers=1, swarm=True) as running:
        await running.join(agents=True)
        plain, with_agents = (await running.plugin.status())["workers"]
        assert (plain["health"], with_agents["health"]) == ("no agent", "healthy")
        assert "swarm" not in running.workers[0].extensions


async def test_installing_twice_is_as_good_as_once() -> None:
    async with cluster(workers=1) as running:
        await running.swarm()
        (worker,) = running.workers
        before = worker.extensions["swarm"]
        await asyncio.gather(host.start(worker), host.start(worker), running.plugin.members.install_agents())
        assert worker.extensions["swarm"] is before


async def test_an_agent_closes_its_files_with_its_worker() -> None:
    async with cluster(workers=0) as running:
        worker = await running.join(agents=True)
        sampler = worker.extensions["swarm"].agents[0]._sampler
        assert sampler._sources
        await worker.close()
        assert not sampler._sources
        await eventually(lambda: not running.plugin.members._hellos, "the scheduler forgets it")


# -- versions ------------------------------------------------------------------------------------------------------


async def test_a_client_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, agents=True) as running:
        monkeypatch.setattr("swarm.client.package", types.SimpleNamespace(__version__="0.0.9"))
        with pytest.raises(VersionMismatchError) as error:
            await running.swarm()
        assert one_line(error) == (
            f"versions of swarm differ: client 0.0.9, scheduler {VERSION}, workers {VERSION}; "
            f"install dask-swarm=={VERSION} everywhere"
        )
        monkeypatch.undo()
        await running.swarm()  # the one that was refused does not count any more


async def test_a_worker_of_another_version_works_as_plain_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, agents=True) as running:
        monkeypatch.setattr("swarm.agents.host.swarm", types.SimpleNamespace(__version__="0.0.9"))
        other = await running.join(agents=True)
        (refused,) = published(running, AgentRefused)
        assert refused.worker == other.address
        assert refused.reason == (
            f"versions of swarm differ: client none connected, scheduler {VERSION}, "
            f"workers 0.0.9 ({other.address}), {VERSION} (1); install dask-swarm=={VERSION} everywhere"
        )
        row = (await running.plugin.status())["workers"][1]
        assert (row["health"], row["note"]) == ("no agent", refused.reason)
        client = await running.client()
        assert await client.submit(sum, [1, 2], workers=[other.address]) == 3
        with pytest.raises(VersionMismatchError) as error:
            await running.swarm()
        assert one_line(error) == refused.reason.replace("client none connected", f"client {VERSION}")


# -- settings ------------------------------------------------------------------------------------------------------


async def test_a_client_whose_settings_differ() -> None:
    async with cluster(workers=1, swarm=True, settings={"max_agents": 16}) as running:
        with pytest.raises(SettingsConflictError) as error:
            await running.swarm(resolved=config_sources.load(max_agents=8))
        said = one_line(error)
        assert said.startswith("settings differ: max_agents is 8 on the client and 16 on the scheduler tcp://")
        agreed = await running.swarm(resolved=config_sources.load(max_agents=16))
        assert agreed.settings.max_agents == 16


async def test_a_worker_whose_settings_differ_closes_itself() -> None:
    async with cluster(workers=0, swarm=True, settings={"max_agents": 16}) as running:
        with own_settings(max_agents=8):
            worker = await running.join(agents=True)
        await eventually(lambda: worker.status is Status.closed, "the worker is closed")
        refusal = running.plugin.members._refused.get(worker.address) or published(running, AgentRefused)[0].reason
        assert f"max_agents is 8 on worker {worker.address} and 16 on the scheduler" in refusal


async def test_a_client_is_told_what_is_wrong_with_a_running_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, swarm=True) as running:
        client = await running.client()
        with own_settings(no_such_setting=1), pytest.raises(SettingsError) as error:
            await Swarm(client, resolved=resolve([]))
        assert one_line(error).startswith("no_such_setting = 1 (dask.config): no such setting")
        assert running.workers[0].status is Status.running
        await running.swarm()


async def test_a_wrong_setting_stops_a_scheduler_that_starts() -> None:
    with own_settings(max_agents=0), pytest.raises(RuntimeError) as error:
        await Scheduler(preload=["scheduler_plugins"], **ANYWHERE)
    assert isinstance(error.value.__cause__, SettingsError)
    assert "max_agents = 0" in str(error.value.__cause__)


# -- what is missing -----------------------------------------------------------------------------------------------


class _NoSwarmHere:
    """Pickles to something that only another machine could import."""

    def __reduce__(self) -> Any:
        return __import__, ("swarm_of_another_machine",)


async def test_a_worker_that_cannot_import_swarm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, swarm=True) as running:
        monkeypatch.setattr("swarm.agents.install", _NoSwarmHere())
        with pytest.raises(MissingPackageError) as error:
            await running.swarm()
        (worker,) = running.workers
        said = one_line(error)
        assert said.startswith(
            f"worker {worker.address} can't import swarm (No module named 'swarm_of_another_machine')"
        )
        assert said.endswith(f"install dask-swarm=={VERSION} there, or remove that worker")
        assert published(running, AgentRefused)[0].reason == said
        client = await running.client()
        assert await client.submit(sum, [1, 2]) == 3


async def test_a_scheduler_that_cannot_import_swarm(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1) as running:
        monkeypatch.setattr("scheduler_plugins.on_dask.plugin.SwarmPlugin", lambda *_: _NoSwarmHere())
        with pytest.raises(MissingPackageError) as error:
            await running.swarm()
        assert one_line(error).startswith(f"scheduler {running.address} can't import swarm (No module named")


async def test_a_scheduler_that_takes_no_plugins() -> None:
    with dask.config.set({"distributed.scheduler.blocked-handlers": ["register_scheduler_plugin"]}):
        async with cluster(workers=1) as running:
            with pytest.raises(MissingPackageError) as error:
                await running.swarm()
            assert one_line(error).endswith("start it with `dask scheduler --preload scheduler_plugins`")


async def test_agents_that_fail_to_start_leave_a_plain_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(worker: object) -> None:
        raise OSError("no space\nleft")

    async with cluster(workers=1, swarm=True) as running:
        monkeypatch.setattr(host, "start", fail)
        connected = await running.swarm()  # one sick worker does not keep a user from a cluster
        (refused,) = published(running, AgentRefused)
        assert "could not start its agents: OSError('no space\\nleft'); see its log" in refused.reason
        run = await connected.submit({"x": (sum, [1, 2])})
        assert await run == 3
        with_preload = await running.join(agents=True)
        assert with_preload.status is Status.running
        assert "swarm" not in with_preload.extensions


async def test_a_scheduler_that_does_not_answer_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(self: object, **_: Any) -> None:
        await asyncio.sleep(10)

    monkeypatch.setattr(host, "HELLO_TIMEOUT_S", 0.1)
    async with cluster(workers=0, swarm=True) as running:
        monkeypatch.setitem(running.scheduler.handlers, "swarm_hello_worker", types.MethodType(sleep, running))
        worker = await running.join(agents=True)
        assert worker.status is Status.running
        assert "swarm" not in worker.extensions


def test_an_answer_that_is_no_answer() -> None:
    with pytest.raises(errors.ProtocolError, match=r"scheduler tcp://s answered the hello with None"):
        host.settings_of(None, "tcp://s")
    with pytest.raises(SwarmError, match=r"^odd$") as error:
        host.settings_of({"error": "SystemExit", "message": "odd"}, "tcp://s")
    assert type(error.value) is SwarmError
