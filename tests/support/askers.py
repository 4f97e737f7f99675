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
                payload, took_us = bytes(size), []
                for _ in range(times):
                    began_ns = time.perf_counter_ns()
                    await self.request(whom, "echo", payload)
                    took_us.append((time.perf_counter_ns() - began_ns) / 1e3)
                return took_us
            case "pid":
                return os.getpid()
            case "pause":
                await asyncio.sleep(message.payload)
        return message.payload
