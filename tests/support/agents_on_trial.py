"""Agents for tests; importable and light, so that processes of their own find them and start quickly."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.agents.base import BaseAgent, State
from swarm.channels.messages import Message, Payload


class Trial(BaseAgent):
    """Does what it is told, and writes into a file what is done to it.

    Parameters
    ----------
    diary
        The file: `setup`, `cycle`, `teardown`, … a line each.
    fails_at
        The cycle of its first life that goes wrong; 0 for each cycle of each life, None for none.
    how
        What goes wrong then: see `_misbehave`.
    """

    kind = "trial"
    interval_s = 0.05

    def __init__(
        self,
        agent_id: str,
        diary: str = "",
        *,
        fails_at: int | None = None,
        how: str = "raise",
        setup_how: str = "",
        slow_setup_s: float = 0.0,
        teardown_how: str = "",
        cycle_s: float = 0.0,
        gate: str = "",
    ) -> None:
        super().__init__(agent_id)
        self.diary = diary
        self.fails_at, self.how = fails_at, how
        self.setup_how, self.slow_setup_s, self.teardown_how = setup_how, slow_setup_s, teardown_how
        self.cycle_s = cycle_s
        self.gate = gate
        self.cycles = 0
        self.notes: list[Any] = []
        self.in_cycle = False
        self.restored = False
        self.optimized = 0

    def write(self, line: str) -> None:
        if self.diary:
            with Path(self.diary).open("a") as file:
                file.write(f"{line}\n")

    async def setup(self) -> None:
        self.write("setup")
        if self.slow_setup_s:
            await asyncio.sleep(self.slow_setup_s)
        if self.setup_how:
            await misbehave(self.setup_how, self.gate)

    async def teardown(self) -> None:
        self.write("teardown")
        if self.teardown_how:
            await misbehave(self.teardown_how, self.gate)

    async def execute_cycle(self) -> None:
        self.in_cycle = True
        self.cycles += 1
        if self.cycle_s:
            await asyncio.sleep(self.cycle_s)
        if self.fails_at == 0 or (self.fails_at == self.cycles and not self.restored):
            await misbehave(self.how, self.gate)
        self.in_cycle = False

    async def handle_message(self, message: Message) -> Payload:
        assert not self.in_cycle
        known = getattr(self, f"on_{message.kind}", None)
        if known is None:
            await misbehave(message.kind, self.gate)
            return None
        answer = known(message.payload)
        return await answer if inspect.isawaitable(answer) else answer

    def on_note(self, note: Payload) -> Payload:
        self.notes.append(note)
        return len(self.notes)

    def on_notes(self, _: Payload) -> Payload:
        return self.notes

    def on_cycles(self, _: Payload) -> Payload:
        return self.cycles

    def on_optimized(self, _: Payload) -> Payload:
        return self.optimized

    def on_where(self, _: Payload) -> Payload:
        return {"pid": os.getpid(), "nice": os.getpriority(os.PRIO_PROCESS, 0), "modules": sorted(sys.modules)}

    def on_cores(self, _: Payload) -> Payload:
        return sorted(os.sched_getaffinity(0))

    async def on_forward(self, to: Payload) -> Payload:
        return await self.request(to["to"], to["kind"], to.get("with"))

    async def on_shout(self, note: Payload) -> Payload:
        return await self.broadcast("note", note)

    async def on_pretend(self, _: Payload) -> None:
        await self.surroundings.voice.send(Message("somebody_else", "test", "note"), 1.0)

    def on_audit(self, speed: Payload) -> None:
        self.surroundings.audit("fan", speed=speed)

    def on_settings(self, _: Payload) -> Payload:
        return self.surroundings.settings.max_agents

    async def on_nap(self, seconds: Payload) -> None:
        await asyncio.sleep(seconds)

    def on_echo(self, payload: Payload) -> Payload:
        return payload

    def on_odd(self, _: Payload) -> Payload:
        return object()

    def on_breed(self, _: Payload) -> Payload:
        return subprocess.Popen(["sleep", "600"]).pid

    def on_eat(self, size: Payload) -> Payload:
        return len(bytearray(size))

    def _agent_specific_optimization(self) -> None:
        self.optimized += 1

    def state(self) -> State:
        return {"cycles": self.cycles, "notes": self.notes}

    def restore(self, state: State) -> None:
        self.write("restore")
        self.restored = True
        self.cycles, self.notes = state["cycles"], state["notes"]


class Idle(BaseAgent):
    """Has a cycle with nothing in it."""

    async def execute_cycle(self) -> None:
        pass


class Plain(BaseAgent):
    """Has a plain cycle, and answers in a plain method."""

    interval_s = 0.05
    cycles = 0

    def execute_cycle(self) -> None:
        self.cycles += 1

    def handle_message(self, message: Message) -> Payload:
        return self.cycles


class Holder(BaseAgent):
    """Holds the event loop in each cycle."""

    interval_s = 0.02
    cycles = 0

    async def execute_cycle(self) -> None:
        self.cycles += 1
        await asyncio.sleep(0)
        hold(0.07)

    async def handle_message(self, message: Message) -> Payload:
        return self.cycles

    def state(self) -> State:
        return {"cycles": self.cycles}

    def restore(self, state: State) -> None:
        self.cycles = state["cycles"]


async def misbehave(how: str, gate: str = "") -> None:
    """Do what agents should not."""
    if how == "hang":
        await asyncio.Event().wait()
    misbehave_now(how, Path(gate))


def misbehave_now(how: str, gate: Path) -> None:
    ways: dict[str, Callable[[], object]] = {
        "raise": fail,
        "exit": lambda: sys.exit(3),
        "block": lambda: wait_for(gate),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "vanish": lambda: os._exit(7),
        "segfault": lambda: ctypes.string_at(0),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "burn": burn,
    }
    ways[how]()


def fail() -> None:
    raise RuntimeError("on purpose")


def wait_for(gate: Path) -> None:
    """Until the test opens the gate."""
    while not gate.exists():
        time.sleep(0.01)


def burn() -> None:
    while True:
        pass


def hold(seconds: float) -> None:
    """Let nothing else happen in this thread."""
    time.sleep(seconds)
