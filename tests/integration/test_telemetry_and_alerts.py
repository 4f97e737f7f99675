"""From a real reading in a heartbeat to a user's handler, Dask's topic, the log and the status."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from swarm.errors import SwarmError
from swarm.protocol import AlertCleared, AlertRaised, Event, WorkerJoined, WorkerLeft, to_wire
from swarm.telemetry import logs
from tests.support.clusters import Listener, cluster
from tests.support.waiting import eventually

LOW = {"performance_thresholds": {"memory_critical": 1}, "monitoring_interval": 0.05}
"""Crossed by any worker with this limit: the process of a test takes 100 MB and more."""
SMALL: dict[str, Any] = {"memory_limit": "4GiB"}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log of swarm, as text."""
    level, propagate, handlers = logs.LOGGER.level, logs.LOGGER.propagate, logs.LOGGER.handlers[:]
    written = io.StringIO()
    logs.configure(stream=written)
    yield written
    logs.LOGGER.handlers[:] = handlers
    logs.LOGGER.setLevel(level)
    logs.LOGGER.propagate = propagate


def lines(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == event]


async def test_real_telemetry_arrives_with_heartbeats() -> None:
    async with cluster(workers=2, agents=True, swarm=True) as running:
        await running.heartbeat()
        rows = (await running.plugin.status())["workers"]
        assert [row["health"] for row in rows] == ["healthy", "healthy"]
        assert all(row["memory_bytes"] > 10e6 and 0 <= row["telemetry_age_s"] < 5 for row in rows)
        await running.heartbeat()
        rows = (await running.plugin.status())["workers"]
        assert all(row["cpu_percent"] >= 0 for row in rows)
        assert running.plugin.malformed == 0


async def test_telemetry_comes_by_itself() -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings={"monitoring_interval": 0.05}) as running:
        worker = running.workers[0].address
        seen = running.plugin.view._workers[worker]
        first = await eventually(lambda: seen.telemetry, "a sample arrives")
        await eventually(lambda: seen.telemetry is not first, "another one arrives")


async def test_a_sample_is_sent_once() -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings={"monitoring_interval": 3600}) as running:
        host = running.workers[0].extensions["swarm"]
        host.agents[0].latest = None
        assert host.heartbeat() is None
        host.agents[0]._on_time()
        assert host.heartbeat()["taken_at_s"] > 0
        assert host.heartbeat() is None


async def test_an_alert_reaches_handlers_the_topic_the_log_and_the_status(log: io.StringIO) -> None:
    async with cluster(workers=0, swarm=True, settings=LOW) as running:
        connected = await running.swarm()
        plain = await running.client()
        on_topic: list[Any] = []
        plain.subscribe_topic("swarm", on_topic.append)
        handler, everything = Listener(), Listener()
        connected.add_event_handler(AlertRaised, handler)
        connected.add_event_handler("*", everything)
        await running.hears(plain)
        await running.hears(connected.client)

        worker = await running.join(agents=True, **SMALL)
        raised = await handler.heard(AlertRaised, resource="memory")

        assert (raised.worker, raised.resource, raised.threshold) == (worker.address, "memory", 1.0)
        assert raised.value > 1.0
        assert raised.reason.startswith("memory of worker w0 is at ")
        assert {type(event) for event in handler.events} == {AlertRaised}
        assert {WorkerJoined, AlertRaised} <= {type(event) for event in everything.events}
        await eventually(lambda: to_wire(raised) in [message for _, message in on_topic], "it is on the topic")
        (line,) = (line for line in lines(log, "alert_raised") if line["resource"] == "memory")
        assert (line["level"], line["worker"], line["rule"]) == ("warning", worker.address, raised.rule)
        assert line["inputs"]["name"] == "w0"
        status = await connected.status()
        assert status["totals"]["alerts"] >= 1
        assert status["workers"][0]["health"] == "alert"

        await worker.close()
        cleared = await everything.heard(AlertCleared, resource="memory")
        assert (cleared.alert, cleared.reason) == (raised.alert, "worker w0 left")
        assert everything.of(WorkerLeft)
        assert (await connected.status())["totals"]["alerts"] == 0


async def test_one_alert_although_the_reading_stays_high() -> None:
    async with cluster(workers=0, swarm=True, settings=LOW) as running:
        await running.join(agents=True, **SMALL)
        for _ in range(5):
            await running.heartbeat()
        raised = [event for event in running.plugin.loop.history if isinstance(event, AlertRaised)]
        assert len([event for event in raised if event.resource == "memory"]) == 1


async def test_readings_are_neither_published_nor_logged(log: io.StringIO) -> None:
    async with cluster(workers=1, agents=True, swarm=True, settings={"monitoring_interval": 0.05}) as running:
        await running.heartbeat()
        await eventually(lambda: running.plugin.view._sample, "a control cycle has passed")
        assert lines(log, "worker_joined")
        assert not lines(log, "telemetry_arrived")
        assert not lines(log, "cluster_sampled")
        published = {message["type"] for _, message in running.scheduler.get_events("swarm")}
        assert published == {"WorkerJoined", "AgentStarted"}


async def test_handlers_may_be_coroutines_may_fail_and_may_go(log: io.StringIO) -> None:
    async with cluster(workers=0, swarm=True) as running:
        connected = await running.swarm()
        seen: list[str] = []
        before, after = Listener(), Listener()

        async def coroutine(event: Event) -> None:
            seen.append(type(event).__name__)

        def broken(event: Event) -> None:
            raise ZeroDivisionError("in a user's handler")

        for handler in (before, broken, coroutine, after):
            connected.add_event_handler("WorkerJoined", handler)
        connected.remove_event_handler("WorkerJoined", before)
        await running.hears(connected.client)
        await running.join()
        await after.heard(WorkerJoined)
        assert seen == ["WorkerJoined"]
        assert not before.events
        (line,) = lines(log, "event_handler_failed")
        assert "in a user's handler" in line["exception"]


async def test_wrong_handlers_are_refused() -> None:
    async with cluster(workers=0, swarm=True) as running:
        connected = await running.swarm()
        with pytest.raises(
            SwarmError, match=r"^there is no event 'AlertRased'; did you mean AlertRaised\? \(known are"
        ):
            connected.add_event_handler("AlertRased", print)
        with pytest.raises(SwarmError, match="there is no event 'RaiseAlert'"):
            connected.add_event_handler("RaiseAlert", print)
        with pytest.raises(SwarmError, match="does not handle AlertRaised"):
            connected.remove_event_handler(AlertRaised, print)


MALFORMED = [
    "text",
    [1, 2],
    {},
    {"taken_at_s": "now"},
    {"taken_at_s": 1.0, "host_cpu_percent": math.nan},
    {"taken_at_s": 1.0, "worker_memory_bytes": "much"},
]


async def test_malformed_telemetry_is_counted_and_harms_nobody(log: io.StringIO) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        (worker,) = running.workers
        host = worker.extensions["swarm"]
        for message in MALFORMED * 2:
            host.heartbeat = lambda message=message: message
            await worker.heartbeat()
        del host.heartbeat
        assert running.plugin.malformed == 2 * len(MALFORMED)
        assert not running.plugin.guard.off
        assert [line["count"] for line in lines(log, "telemetry_malformed")] == [1, 2, 4, 8]
        await running.heartbeat()
        assert (await running.plugin.status())["workers"][0]["memory_bytes"] > 0
        assert await (await running.client()).submit(sum, [1, 2]) == 3


async def test_an_agent_that_fails_does_not_close_its_worker(log: io.StringIO) -> None:
    async with cluster(workers=1, agents=True, swarm=True) as running:
        (worker,) = running.workers
        (agent,) = worker.extensions["swarm"].agents
        agent.take_latest = lambda: 1 / 0
        for _ in range(3):
            await worker.heartbeat()
        assert worker.status.name == "running"
        assert worker.extensions["swarm"].failures == 3
        assert len(lines(log, "heartbeat_failed")) == 1
