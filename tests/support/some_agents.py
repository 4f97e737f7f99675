"""Agents for tests, in a module that processes of their own can import."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from swarm.agents.base import BaseAgent, State
from swarm.channels.messages import Message, Payload


class Counter(BaseAgent):
    """Counts what it is sent, and knows the number after a restart."""

    def __init__(self, agent_id: str, first: int = 0) -> None:
        super().__init__(agent_id)
        self.count = first

    async def execute_cycle(self) -> None:
        pass

    async def handle_message(self, message: Message) -> Payload:
        match message.kind:
            case "crash":
                os._exit(3)
            case "raise":
                raise ValueError("as asked")
            case "sleep":
                await asyncio.sleep(float(message.payload))
            case "ask":
                return await self.request(message.payload, "count")
            case "tell_all":
                return await self.broadcast("count", to=message.payload)
            case "claim":  # to be somebody else
                forged = Message("somebody", message.payload, "count")
                await self.surroundings.voice.send(forged, 5.0)
            case "where":
                return [os.getpid(), self.surroundings.place]
            case "audit":
                self.surroundings.audit("cores_lent", cores=2)
        self.count += 1
        return self.count

    def state(self) -> State:
        return {"count": self.count}

    def restore(self, state: State) -> None:
        self.count = state["count"]


class Wrong(BaseAgent):
    """Raises when it starts."""

    def setup(self) -> Any:
        raise RuntimeError("no luck today")


class Restless(BaseAgent):
    """Raises in its fourth cycle."""

    interval_s = 0.01

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self.cycles = 0

    async def execute_cycle(self) -> None:
        self.cycles += 1
        if self.cycles > 3:
            raise RuntimeError("again")
