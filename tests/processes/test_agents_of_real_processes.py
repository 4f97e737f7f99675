"""Agents on workers and nannies that are processes of their own: all kinds answer, and survive what kills workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import swarm
from swarm.agents.kinds import KINDS
from swarm.agents.spec import pack_state
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.errors import AgentError
from tests.support.chatter import Chatter, start_chatting, stop_chatting
from tests.support.processes import wait_until
from tests.support.some_agents import Counter

QUESTIONS = {
    "optimization": "experiments",
    "resource": "pressure",
    "fault_tolerance": "anomaly_scores",
    "learning": "strategies",
}
KEPT = pack_state({"count": 3}, "inside")
PLACES = {"fault_tolerance": "every-host", "thermal": "every-host", "learning": "scheduler"}


@pytest.fixture
def connected() -> Iterator[swarm.Swarm]:
    spec = ClusterSpec(workers=2, threads_per_worker=1, dashboard_port=None, env={"DASK_SWARM__MAX_AGENTS": "64"})
    with LocalProcesses(spec) as cluster, swarm.connect(cluster.address) as made:
        wait_until(lambda: has_witnesses(made), "the nannies have their agents")
        yield made


def has_witnesses(connected: swarm.Swarm) -> bool:
    def look(dask_scheduler: object) -> bool:
        members = dask_scheduler.plugins["swarm"].members  # type: ignore[attr-defined]
        return all(map(members.has_witness, dask_scheduler.workers))  # type: ignore[attr-defined]

    return bool(connected.client.run_on_scheduler(look))


def asked(connected: swarm.Swarm, agent: str, kind: str = "count") -> object:
    """The answer, also of an agent that is on its way to another place."""

    def ask() -> list[object]:
        try:
            send = connected.orchestrator.communicator.send_message
            return [send(agent, kind, wait_for_answer=True, timeout=1.0)]
        except AgentError:
            return []

    return wait_until(ask, f"{agent} answers", 30.0)[0]


def state_of(connected: swarm.Swarm, agent: str) -> dict[str, object]:
    agents = connected.orchestrator.get_system_status()["agents"]
    return next((each for each in agents if each["agent"] == agent), {})


def lives(connected: swarm.Swarm) -> list[dict[str, Any]]:
    """What each place tells of its agents."""
    return [agent for place in connected.orchestrator.get_system_status()["places"] for agent in place["agents"]]


def test_every_kind_lives_where_it_belongs_and_answers(connected: swarm.Swarm) -> None:
    for kind in KINDS:
        created = connected.orchestrator.create_agent(kind, kind, where=PLACES.get(kind, "every-worker"))
        assert [agent["state"] for agent in created] == ["running"] * len(created), created
        assert len(created) == (1 if kind in PLACES else 2)
        for agent in created:
            assert asked(connected, agent["agent"], QUESTIONS.get(kind, "status")) is not None, agent
    wait_until(lambda: all(agent["cycles"] >= 2 for agent in lives(connected)), "all have had their turns", 30.0)
    assert {agent["state"] for agent in connected.orchestrator.get_system_status()["agents"]} == {"running"}
    assert [agent["last_error"] for agent in lives(connected)] == [None] * 9
    assert connected.status()["off"] == {}
    for kind in KINDS:
        connected.orchestrator.destroy_agent(kind)
    assert connected.orchestrator.get_system_status()["agents"] == []


def test_an_agent_in_a_nanny_outlives_the_worker_and_one_in_the_worker_moves(connected: swarm.Swarm) -> None:
    (inside,) = connected.orchestrator.create_agent(Counter, "inside")
    (outside,) = connected.orchestrator.create_agent(Counter, "outside", where="every-host")
    assert outside["place"] not in connected.client.scheduler_info(n_workers=-1)["workers"]
    assert [asked(connected, "inside") for _ in range(3)] == [1, 2, 3]
    assert asked(connected, outside["agent"]) == 1
    heard = 'dask_scheduler.plugins["swarm"].agents.registry.members["inside"].kept'
    wait_until(lambda: connected.client.run_on_scheduler(look_at, heard) == KEPT, "its state is known")
    pid, place = asked(connected, "inside", "where")  # type: ignore[misc]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state_of(connected, "inside").get("place") not in (place, None), "it is elsewhere", 30.0)
    assert asked(connected, "inside") in (4, 5)  # the first may have been counted, and answered too late
    assert inside["place"] != state_of(connected, "inside")["place"]
    assert asked(connected, outside["agent"]) == 2


def look_at(what: str, dask_scheduler: object) -> object:
    return eval(what, {"dask_scheduler": dask_scheduler})


def test_nothing_that_was_acknowledged_is_lost(connected: swarm.Swarm) -> None:
    orchestrator = connected.orchestrator

    async def talk() -> object:
        async with await swarm.connect(connected.address, asynchronous=True) as other:
            names = await start_chatting(other.orchestrator)
            until_s = time.monotonic() + 3.0
            while time.monotonic() < until_s:
                await other.orchestrator.get_system_status()
            return await stop_chatting(other.orchestrator, names)

    import asyncio

    found = asyncio.run(talk())
    assert (found.lost, found.out_of_order, dict(found.failed)) == ((), 0, {})  # type: ignore[attr-defined]
    assert found.acknowledged == found.received > 50  # type: ignore[attr-defined]
    assert {agent["kind"] for agent in orchestrator.get_system_status()["agents"]} == {Chatter.kind}
