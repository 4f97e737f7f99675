"""Agents on a real cluster, as a user has them: created, spoken with, failed, moved, destroyed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from swarm import errors
from swarm.channels.messages import Message, encode
from swarm.orchestrator import Orchestrator
from swarm.protocol import AgentChanged, ChangeAudited
from tests.support.clusters import Cluster, Listener, cluster
from tests.support.some_agents import Counter, Restless, Wrong
from tests.support.waiting import eventually


@asynccontextmanager
async def orchestrated(workers: int = 2, **settings: Any) -> AsyncIterator[tuple[Cluster, Orchestrator]]:
    async with cluster(workers=workers, agents=True, swarm=True, settings=settings) as running:
        yield running, (await running.swarm()).orchestrator


async def asked(orchestrator: Orchestrator, agent: str, kind: str = "count", payload: Any = None) -> Any:
    return await orchestrator.communicator.send_message(agent, kind, payload, wait_for_answer=True)


@pytest.mark.parametrize("isolation", ["loop", "thread", "process"])
async def test_the_life_of_an_agent(isolation: str) -> None:
    async with orchestrated() as (running, orchestrator):
        (created,) = await orchestrator.create_agent(Counter, "mine", first=10, isolation=isolation)
        assert created["state"] == "running"
        assert created["place"] in running.scheduler.workers
        assert await asked(orchestrator, "mine") == 11
        await orchestrator.communicator.send_message("mine", "count")
        assert await asked(orchestrator, "mine") == 13
        pid, place = await asked(orchestrator, "mine", "where")
        assert (pid == os.getpid()) == (isolation != "process")
        assert place == created["place"]
        status = await orchestrator.get_system_status()
        assert [agent["agent"] for agent in status["agents"]] == ["mine"]
        assert await orchestrator.destroy_agent("mine") == ["mine"]
        with pytest.raises(errors.UnknownAgentError):
            await asked(orchestrator, "mine")


async def test_agents_ask_each_other_wherever_they_are() -> None:
    async with orchestrated() as (running, orchestrator):
        here, there = running.scheduler.workers
        await orchestrator.create_agent(Counter, "ann", where=here)
        await orchestrator.create_agent(Counter, "ben", where=here, isolation="thread")
        await orchestrator.create_agent(Counter, "cas", where=there, isolation="process")
        await orchestrator.create_agent(Counter, "dan", where="scheduler")
        for sender in ("ann", "ben", "cas", "dan"):
            for recipient in {"ann", "ben", "cas", "dan"} - {sender}:
                before = await asked(orchestrator, recipient)
                assert await asked(orchestrator, sender, "ask", recipient) == before + 1


async def test_broadcasts() -> None:
    async with orchestrated() as (_, orchestrator):
        await orchestrator.create_agent(Counter, "all", where="every-worker")
        await orchestrator.create_agent(Counter, "one")
        assert await orchestrator.communicator.broadcast_message("count") == 3
        assert await orchestrator.communicator.broadcast_message("count", to="all") == 2
        assert await asked(orchestrator, "one", "tell_all", "all") == 2
        assert await asked(orchestrator, "one", "tell_all", "*") == 2


async def test_every_worker_that_joins_gets_one() -> None:
    async with orchestrated(workers=1) as (running, orchestrator):
        await orchestrator.create_agent(Counter, "all", where="every-worker")
        await running.join(agents=True)
        members = running.plugin.agents.registry.members
        await eventually(lambda: [m.state for m in members.values()] == ["running"] * 2, "the second worker has one")
        assert await asked(orchestrator, "all.w1") == 1


async def test_an_agent_moves_with_its_state_when_its_worker_closes() -> None:
    async with orchestrated() as (running, orchestrator):
        (created,) = await orchestrator.create_agent(Counter, "mine")
        assert [await asked(orchestrator, "mine") for _ in range(3)] == [1, 2, 3]
        await running.heartbeat()
        await eventually(lambda: running.plugin.agents.registry.members["mine"].kept, "its state has arrived")
        victim = next(worker for worker in running.workers if worker.address == created["place"])
        await victim.close()
        member = await eventually(lambda: running.plugin.agents.registry.members.get("mine"), "it is known again")
        await eventually(lambda: member.state == "running", "it runs again")
        assert member.place != created["place"]
        assert await asked(orchestrator, "mine") == 4


async def test_a_process_that_is_killed_is_started_again_with_its_state() -> None:
    async with orchestrated(workers=1) as (_, orchestrator):
        await orchestrator.create_agent(Counter, "mine", isolation="process")
        assert await asked(orchestrator, "mine") == 1
        pid, _ = await asked(orchestrator, "mine", "where")
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await asked(orchestrator, "mine") == 2
                    break
                except errors.NoAnswerError:  # what was in its hands died with it
                    continue
        assert (await asked(orchestrator, "mine", "where"))[0] != pid


async def test_what_becomes_of_agents_is_told() -> None:
    async with orchestrated(workers=1) as (running, orchestrator):
        listener = Listener()
        orchestrator.add_event_handler(AgentChanged, listener)
        orchestrator.add_event_handler(ChangeAudited, listener)
        await running.hears(orchestrator.swarm.client)
        await orchestrator.create_agent(Counter, "mine")
        await listener.heard(AgentChanged, agent="mine", state="running")
        await asked(orchestrator, "mine", "audit")
        audited = await listener.heard(ChangeAudited, what="cores_lent")
        assert (audited.agent, audited.details) == ("mine", {"cores": 2})
        await orchestrator.destroy_agent("mine")
        await listener.heard(AgentChanged, agent="mine", state="stopped")


async def test_an_agent_that_fails_again_and_again_is_given_up_visibly() -> None:
    async with orchestrated(workers=1) as (running, orchestrator):
        await orchestrator.create_agent(Restless, "mine")
        members = running.plugin.agents.registry.members
        await eventually(lambda: members["mine"].state == "failed", "it is given up", timeout_s=30)
        assert "again" in members["mine"].reason
        assert (await orchestrator.get_system_status())["agents"][0]["state"] == "failed"
        assert await orchestrator.destroy_agent("mine") == ["mine"]


async def test_a_group_grows_under_load() -> None:
    async with orchestrated(workers=1) as (running, orchestrator):
        await orchestrator.create_agent(Counter, "many", min_agents=1, max_agents=2, isolation="thread")
        busy = [
            asyncio.create_task(orchestrator.communicator.send_message("many", "sleep", 0.5, timeout=30.0))
            for _ in range(30)
        ]
        members = running.plugin.agents.registry.members
        await eventually(lambda: "many.1" in members, "there is a second one", timeout_s=30)
        await asyncio.gather(*busy)


# -- bad input ---------------------------------------------------------------------------------------------------------


async def test_what_a_user_can_get_wrong_is_a_typed_error() -> None:
    async with orchestrated(max_agents=2) as (_, orchestrator):
        send = orchestrator.communicator.send_message
        with pytest.raises(errors.UnknownAgentError, match="there is no agent 'nobody'"):
            await send("nobody", "count")
        await orchestrator.create_agent(Counter, "mine")
        with pytest.raises(errors.UnknownAgentError, match="did you mean mine"):
            await send("mime", "count", wait_for_answer=True)
        with pytest.raises(errors.AgentExistsError, match="there is an agent 'mine' already"):
            await orchestrator.create_agent(Counter, "mine")
        with pytest.raises(errors.AgentFailedError, match="no luck today"):
            await orchestrator.create_agent(Wrong, "wrong")
        with pytest.raises(errors.UnknownAgentError, match="no worker 'elsewhere'"):
            await orchestrator.create_agent(Counter, "lost", where="elsewhere")
        await orchestrator.create_agent(Counter, "second")
        with pytest.raises(errors.TooManyAgentsError, match="max_agents is 2"):
            await orchestrator.create_agent(Counter, "third")
        with pytest.raises(errors.UnknownAgentError):
            await orchestrator.destroy_agent("third")
        with pytest.raises(errors.AgentFailedError, match="as asked"):
            await send("mine", "raise", wait_for_answer=True)
        with pytest.raises(errors.NoAnswerError, match=r"not answered within 0\.1 s"):
            await send("mine", "sleep", 0.3, wait_for_answer=True, timeout=0.1)
        with pytest.raises(errors.MessageTooLargeError):
            await send("mine", "count", bytes(65 << 20))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"agent_type": "thermos"}, "did you mean thermal"),
        ({"agent_type": int}, "not a subclass of swarm.BaseAgent"),
        ({"agent_id": "a b"}, "must be 1 to 64 letters"),
        ({"agent_id": "client"}, "are taken"),
        ({"isolation": "cage"}, "must be one of loop, thread, process"),
        ({"where": 1.5}, "must be the name or address of a worker"),
        ({"priority": 50}, "-20 to 19"),
        ({"memory_limit": "much", "isolation": "process"}, "must be bytes"),
        ({"memory_limit": "1GiB", "isolation": "loop"}, 'isolation="process"'),
        ({"interval": -1}, "interval"),
        ({"cpu_affinity": [], "isolation": "thread"}, "cpu_affinity"),
        ({"min_agents": 3}, "max_agents"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_can_be_no_agent_is_refused_before_it_is_sent(what: dict[str, Any], said: str) -> None:
    async with orchestrated(workers=0) as (_, orchestrator):
        arguments = {"agent_type": Counter, "agent_id": "mine", **what}
        if what.get("agent_id") == "client":
            with pytest.raises(errors.AgentDefinitionError, match=said):
                await orchestrator.create_agent(**arguments)
            return
        with pytest.raises(errors.AgentDefinitionError, match=said):
            orchestrator.create_agent(**arguments)


async def test_a_forged_sender_is_refused_and_audited() -> None:
    async with orchestrated() as (running, orchestrator):
        listener = Listener()
        orchestrator.add_event_handler(ChangeAudited, listener)
        await running.hears(orchestrator.swarm.client)
        here, there = running.scheduler.workers
        await orchestrator.create_agent(Counter, "somebody", where=there)
        await orchestrator.create_agent(Counter, "forger", where=here)
        await orchestrator.create_agent(Counter, "victim", where=there)
        with pytest.raises(errors.ForbiddenMessageError, match="can't send a message in the name of somebody"):
            await asked(orchestrator, "forger", "claim", "victim")
        # A process that does not even ask itself.
        forged = Message("somebody", "victim", "count")
        home = next(worker for worker in running.workers if worker.address == here).extensions["swarm"].door.home
        where = await home.communicator._find("victim")
        for carrier in home.communicator.carriers:
            with suppress(errors.ForbiddenMessageError):  # over Dask it is told
                await carrier.send(where, encode(forged), forged.priority, 5.0)

        def refused() -> list[object]:
            events = listener.of(ChangeAudited)
            return [event.details["reason"] for event in events if event.what == "message_refused"]

        told = await eventually(lambda: (found := refused())[1:] and found, "both are in the audit trail")
        assert len(told) == 2
        assert all("says it is from somebody" in str(reason) for reason in told)
        assert await asked(orchestrator, "victim") == 1


async def test_a_full_mailbox_holds_back_until_the_deadline() -> None:
    async with orchestrated(workers=1, channel_size=4096) as (_, orchestrator):
        await orchestrator.create_agent(Counter, "mine")
        send = orchestrator.communicator.send_message
        await send("mine", "sleep", 2.0)
        with pytest.raises(errors.ChannelFullError, match="room"):
            for _ in range(10):
                await send("mine", "count", bytes(1500), timeout=0.2)
