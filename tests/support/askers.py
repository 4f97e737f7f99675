"""Agents that ask each other and take the time, and one that does nothing."""

from __future__ import annotations

import asyncio
import os
import time

from swarm.agents.base import BaseAgent
from swarm.channels.messages import Message, Payload


class Idler(BaseAgent):
    """Wakes up once a second, and does nothing."""

    async def execute_cycle(self) -> None:
        pass


class Asker(BaseAgent):
    """Measures round trips on request."""

    async def handle_message(self, message: Message) -> Payload:
        match message.kind:
            case "ask":
                whom, times, size = message.payload
                payload, there_us, there_and_back_us = bytes(size), [], []
                for _ in range(times):
                    began_ns = time.perf_counter_ns()
                    came_ns, _ = await self.request(whom, "stamp", payload)
                    there_us.append((came_ns - began_ns) / 1e3)  # processes of a host share this clock
                    there_and_back_us.append((time.perf_counter_ns() - began_ns) / 1e3)
                return [there_us, there_and_back_us]
            case "stamp":
                return [time.perf_counter_ns(), message.payload]
            case "pid":
                return os.getpid()
            case "pause":
                await asyncio.sleep(message.payload)
        return message.payload
