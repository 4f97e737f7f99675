"""Whatever of swarm fails, Dask computes on, and the status says what is off."""

from __future__ import annotations

import io
from typing import Any

import pytest
from distributed import Worker
from distributed.core import Status
from rich.console import Console

from scheduler_plugins.on_dask.guard import STRIKES
from scheduler_plugins.on_dask.plugin import SwarmPlugin
from swarm.errors import RunFailedError, SwarmError
from swarm.protocol import PartDisabled
from swarm.status import render
from tests.support.clusters import Cluster, Listener, cluster
from tests.support.waiting import eventually


class Broken:
    """Breaks a part and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        raise ZeroDivisionError("broken on purpose")


async def work(running: Cluster) -> None:
    """Plain Dask work, and everything that brings events: workers, heartbeats, control cycles."""
    client = await running.client()
    await running.join(agents=True)
    for i in range(STRIKES + 1):
        await running.heartbeat()
        running.plugin._on_cycle()
        futures = client.map(lambda x, i=i: x + i, range(10))
        assert await client.gather(futures) == list(range(i, i + 10))
    await running.workers[-1].close()
    running.workers.pop()
    assert await client.submit(sum, [1, 2]) == 3


@pytest.mark.parametrize(
    ("part", "of", "method"),
    [
        ("controller", lambda plugin: plugin.loop._controller, "on_event"),
        ("controller", lambda plugin: plugin.loop._enactor, "enact"),
        ("view", lambda plugin: plugin.view, "apply"),
        ("events", lambda plugin: plugin.scheduler, "log_event"),
        ("samples", lambda plugin: plugin._sampler, "sample"),
        ("membership", lambda plugin: plugin.members, "has_agents"),
    ],
)
async def test_a_part_that_fails_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, part: str, of: Any, method: str
) -> None:
    low = {"performance_thresholds": {"memory_critical": 1}}  # so that there is something to enact
    async with cluster(workers=0, swarm=True, settings=low) as running:
        for i in range(STRIKES):
            await running.join(agents=True, memory_limit="4GiB", name=f"early-{i}")
        connected = await running.swarm()
        disabled = Listener()
        connected.add_event_handler(PartDisabled, disabled)
        await running.hears(connected.client)
        target, broken = of(running.plugin), Broken()
        if method == "log_event":  # Dask's own events go on
            log_event = target.log_event

            def ours_fails(topic: Any, message: Any) -> None:
                broken() if topic == "swarm" else log_event(topic, message)

            monkeypatch.setattr(target, method, ours_fails)
        elif hasattr(type(target), "__slots__") and not hasattr(target, "__dict__"):
            monkeypatch.setattr(type(target), method, broken)
        else:
            monkeypatch.setattr(target, method, broken)
        if part == "membership":
            for i in range(STRIKES):
                await running.join(name=f"late-{i}")
        await work(running)

        calls = broken.calls
        assert calls == STRIKES
        plugin = running.plugin
        assert plugin.guard.off == {part: "ZeroDivisionError: broken on purpose"}
        status = await connected.status()
        assert status["off"] == plugin.guard.off
        assert status["failures"] == {part: STRIKES}
        if part not in ("view", "events"):
            assert (await disabled.heard(PartDisabled)).part == part
            assert [row["part"] for row in status["disabled"]] == [part]
        assert f"switched off: {part}: ZeroDivisionError: broken on purpose" in rendered(status)
        await work(running)
        assert broken.calls == calls


def rendered(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    render(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_telemetry_that_cannot_be_read_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        broken = Broken()
        monkeypatch.setattr("scheduler_plugins.on_dask.observe.telemetry_arrived", broken)
        await work(running)
        assert broken.calls == STRIKES
        assert set((await running.plugin.status())["off"]) == {"telemetry"}
        assert all(worker.status is Status.running for worker in running.workers)


@pytest.mark.parametrize("method", ["graph_arrived", "task_finished", "announced", "awaits"])
async def test_runs_that_fail_still_give_their_results(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        connected = await running.swarm()
        broken = Broken()
        monkeypatch.setattr(running.plugin.runs, method, broken)
        for i in range(STRIKES + 2):
            run = await connected.submit({f"x{i}": (sum, [i, 1])})
            assert await run.result(timeout=10) == i + 1
            assert run.status == "finished"
        assert broken.calls == STRIKES
        assert set((await connected.status())["off"]) == {"runs"}
        with pytest.raises(RunFailedError, match="does not follow runs any more"):
            await run.info()
        failing = await connected.submit({"bad": (divmod, 1, 0)})
        with pytest.raises(ZeroDivisionError):
            await failing
        await failing.cancel()
        await work(running)


async def test_peaks_that_fail_do_not_take_the_telemetry_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        plugin = running.plugin
        monkeypatch.setattr(plugin.runs, "telemetry_arrived", Broken())
        plugin.runs.by_key["some key"] = ()
        for _ in range(STRIKES):
            await running.heartbeat()
        assert set(plugin.guard.off) == {"runs"}


async def test_a_name_that_is_gone_from_dask_switches_off_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = {"telemetry": "this version of distributed lacks Scheduler.extensions"}
    monkeypatch.setattr("scheduler_plugins.on_dask.selftest.missing", lambda _: lacks)
    async with cluster(workers=1, agents=True, swarm=True) as running:
        await work(running)
        status = await running.plugin.status()
        assert status["off"] == lacks
        assert status["disabled"][0]["part"] == "telemetry"


async def test_a_broken_worker_list_does_not_keep_the_plugin_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_plugins.on_dask.observe.worker_joined", Broken())
    async with cluster(workers=4) as running:
        connected = await running.swarm()
        assert set((await connected.status())["off"]) == {"membership"}
        assert await connected.client.submit(sum, [1, 2]) == 3


async def test_without_a_dashboard_the_status_says_why() -> None:
    async with cluster(workers=1, swarm=True) as running:
        status = await running.plugin.status()
        assert status["page"] is None
        assert status["page_absent"]
        assert f"dashboard none: {status['page_absent']}" in rendered(status)


async def test_with_a_dashboard_there_is_a_page() -> None:
    async with cluster(workers=1, swarm=True, dashboard=True) as running:
        connected = await running.swarm()
        assert (await connected.page).endswith("/swarm")


# -- swarm goes, Dask stays ----------------------------------------------------------------------------------------


async def alive_after_heartbeats(workers: list[Worker]) -> bool:
    for worker in workers:
        for agent in worker.extensions["swarm"].agents:
            agent._on_time()
        await worker.heartbeat()
    return all(worker.status is Status.running for worker in workers)


async def test_workers_outlive_the_plugin() -> None:
    async with cluster(workers=2, agents=True, swarm=True, settings={"monitoring_interval": 0.05}) as running:
        connected = await running.swarm()
        before = running.plugin
        await connected.client.unregister_scheduler_plugin("swarm")
        assert await alive_after_heartbeats(running.workers)
        await eventually(lambda: "swarm_status" not in running.scheduler.handlers, "the plugin has noticed")
        assert "swarm" not in running.scheduler.task_metadata
        assert await alive_after_heartbeats(running.workers)
        assert not before._cycle.is_running()
        assert await connected.client.submit(sum, [1, 2]) == 3
        with pytest.raises(SwarmError, match=r"does not run swarm any more; connect again$"):
            await connected.status()
        with pytest.raises(SwarmError, match=r"does not run swarm any more"):
            await connected.submit({"x": 1})


async def test_a_plugin_that_comes_after_another_one_is_left_alone() -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings={"monitoring_interval": 0.05}) as running:
        first, client = running.plugin, await running.client()
        await client.unregister_scheduler_plugin("swarm")
        await client.register_plugin(SwarmPlugin())
        second = running.plugin
        assert second is not first
        await eventually(lambda: not first._is_running, "the first one has noticed")
        assert running.scheduler.handlers["swarm_status"] == second.status
        assert await alive_after_heartbeats(running.workers)
        connected = await running.swarm()
        (row,) = (await connected.status())["workers"]
        assert row["health"] != "no agent"
        assert row["memory_bytes"] > 0


async def test_hooks_of_a_plugin_that_was_never_started_do_nothing() -> None:
    plugin = SwarmPlugin()
    async with cluster(workers=1) as running:
        running.scheduler.add_plugin(plugin, name="unstarted")
        client = await running.client()
        assert await client.submit(sum, [1, 2]) == 3
        await running.join()
        await running.workers[0].close()
        await plugin.before_close()
