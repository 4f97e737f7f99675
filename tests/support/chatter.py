"""Agents that write to each other all the time, and know what they were promised: nothing acknowledged may be lost."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.agents.base import BaseAgent
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentError
from swarm.orchestrator import Orchestrator

PERIOD_S = 0.1
NOTES_PER_CYCLE = 4
SIZES = (10, 100, 1000, 20_000)
KEPT = 2000
DRAIN_S = 10.0


class Chatter(BaseAgent):
    """Each period it sends numbered notes to others, and one of them a ping, which comes back as a message of its own.

    Not a request: two that wait for each other's answers in their turns would wait for ever.
    """

    interval_s = PERIOD_S

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self.others: list[str] = []
        self.acknowledged: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.out_of_order = 0
        self.failed: Counter[str] = Counter()
        self.round_trips_us: list[float] = []
        self._last: dict[str, int] = {}
        self._random = random.Random(agent_id)

    async def execute_cycle(self) -> None:
        for _ in range(NOTES_PER_CYCLE if self.others else 0):
            other = self._random.choice(self.others)
            note = [self.acknowledged[other], bytes(self._random.choice(SIZES))]
            if await self._try(other, "note", note):
                self.acknowledged[other] += 1
        if self.others:
            await self._try(self._random.choice(self.others), "ping", time.perf_counter_ns())

    async def _try(self, other: str, kind: str, payload: Payload) -> bool:
        try:
            await self.send(other, kind, payload)
        except AgentError as error:
            self.failed[type(error).__name__] += 1
            return False
        return True

    async def handle_message(self, message: Message) -> Payload:
        match message.kind:
            case "note":
                number = message.payload[0]
                self.out_of_order += number != self._last.get(message.sender, -1) + 1
                self._last[message.sender] = number
                self.received[message.sender] += 1
            case "ping":
                await self._try(message.sender, "pong", message.payload)
            case "pong":
                self.round_trips_us.append((time.perf_counter_ns() - message.payload) / 1e3)
                del self.round_trips_us[:-KEPT]
            case "others":
                self.others = [other for other in message.payload if other != self.agent_id]
            case "tally":
                return {
                    "acknowledged": dict(self.acknowledged),
                    "received": dict(self.received),
                    "out_of_order": self.out_of_order,
                    "failed": dict(self.failed),
                    "round_trips_us": self.round_trips_us,
                }
        return None


@dataclass(frozen=True)
class Talk:
    """What all chatters together were promised, and what came."""

    agents: int
    acknowledged: int
    received: int
    lost: tuple[str, ...]
    """A line for each pair of which less was read than acknowledged."""
    out_of_order: int
    failed: Mapping[str, int]
    p50_us: float
    p99_us: float


async def start_chatting(orchestrator: Orchestrator) -> list[str]:
    """A chatter on every worker, which all know each other; returns their ids."""
    created = await orchestrator.create_agent(Chatter, "chatter", where="every-worker")
    names = [agent["agent"] for agent in created if agent["state"] == "running"]
    await orchestrator.communicator.broadcast_message("others", names, to="chatter", timeout=30.0)
    return names


async def stop_chatting(orchestrator: Orchestrator, names: list[str]) -> Talk:
    """Let them come to an end, and compare."""
    send = orchestrator.communicator.send_message
    await orchestrator.communicator.broadcast_message("others", [], to="chatter", timeout=30.0)
    deadline_s = time.monotonic() + DRAIN_S
    while True:
        tallies = {name: await send(name, "tally", wait_for_answer=True, timeout=30.0) for name in names}
        lost = list(_lost(tallies))
        if not lost or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(0.5)  # what was acknowledged may still be on its way
    times = sorted(us for tally in tallies.values() for us in tally["round_trips_us"])
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else [float("inf")] * 99
    return Talk(
        agents=len(names),
        acknowledged=sum(sum(tally["acknowledged"].values()) for tally in tallies.values()),
        received=sum(sum(tally["received"].values()) for tally in tallies.values()),
        lost=tuple(lost),
        out_of_order=sum(tally["out_of_order"] for tally in tallies.values()),
        failed=sum((Counter(tally["failed"]) for tally in tallies.values()), Counter()),
        p50_us=cuts[49],
        p99_us=cuts[98],
    )


def _lost(tallies: Mapping[str, Any]) -> Iterator[str]:
    for sender, tally in tallies.items():
        for recipient, n in tally["acknowledged"].items():
            if (came := tallies[recipient]["received"].get(sender, 0)) != n:
                yield f"{sender} → {recipient}: {n} acknowledged, {came} read"
