"""An agent on the event loop of its host."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from typing import Any

from swarm.agents.base import State
from swarm.agents.life.isolation import CANCEL_S, TEARDOWN_S, Bound, Circumstances, Owner, bound, first_of
from swarm.agents.life.runner import Runner, line_of, no_exit
from swarm.agents.life.vitals import Vitals
from swarm.agents.spec import AgentSpec
from swarm.channels.messages import Message
from swarm.errors import AgentFailedError

HELD_S = 0.05
"""Dask's own tick is 20 ms; what holds its loop longer than this can be felt."""
HOLDS = 3
HOLDS_WITHIN_S = 60.0
"""A busy machine makes anything slow once in a while; three times in a minute is a habit."""


class LoopBody:
    """An agent on the event loop of its host."""

    def __init__(self, spec: AgentSpec, owner: Owner, circumstances: Circumstances) -> None:
        self.vitals = Vitals()
        self._owner: Owner | None = owner
        self._spec = spec
        self._started = circumstances.loop.create_future()
        self._holds: deque[float] = deque(maxlen=HOLDS)
        self._held_s = 0.0
        self._context = copy_context()
        self._runner = Runner(
            lambda: spec.agent_class(spec.agent_id, **spec.options),
            bound(circumstances.surroundings, Bound(circumstances.surroundings.voice, spec.agent_id), spec),
            self,
            self.vitals,
            interval_s=spec.interval,
            optimization_interval_s=circumstances.optimization_interval_s,
            drive=self._drive,
            context=self._context,
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self, state: State) -> None:
        name = f"swarm-agent-{self._spec.agent_id}"
        self._task = asyncio.create_task(self._runner.run(state), name=name, context=self._context)
        self._task.add_done_callback(self._over)
        await first_of(self._task, self._started)
        if not self._started.done():  # else it has ended since, and its owner hears of it
            raise AgentFailedError(_reason(self._task))

    def give(self, frame: bytes, message: Message | None) -> None:
        self._runner.give(message or frame)

    async def stop(self) -> None:
        if self._task is None:
            return
        if self._started.done():
            self._runner.stop()
        else:
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=TEARDOWN_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=TEARDOWN_S)
        self._owner = None

    async def leave(self) -> str:
        self._owner = None
        if self._task is None or self._task.done():
            return ""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CANCEL_S)
        return "it was cancelled" if self._task.done() else "it was cancelled, and goes on"

    def _over(self, task: asyncio.Task[None]) -> None:
        reason = _reason(task)  # also so that asyncio does not complain that nobody asked
        if self._owner is not None and self._started.done():
            self._owner.ended(reason)

    async def _drive(self, method: Callable[..., Any], *arguments: Any) -> Any:
        began_s = time.perf_counter()
        with no_exit():
            try:
                result = method(*arguments)
            finally:
                self._note(time.perf_counter() - began_s)
            return await _Stepwise(result, self._note) if inspect.isawaitable(result) else result

    def _note(self, held_s: float) -> None:
        """The agent has held the loop so long."""
        self._held_s += held_s
        self.vitals.note_cpu(self._held_s)
        if held_s <= HELD_S or not self._started.done():  # what happens once, at the start, is no habit
            return
        now_s = time.monotonic()
        self._holds.append(now_s)
        if len(self._holds) == HOLDS and now_s - self._holds[0] <= HOLDS_WITHIN_S and self._owner is not None:
            self._holds.clear()
            self._owner.holds(held_s)

    # What the runner tells.

    def started(self) -> None:
        self._started.set_result(None)

    def wants(self) -> None:
        if self._owner is not None:
            self._owner.wants()

    def keeps(self, state: bytes) -> None:
        if self._owner is not None:
            self._owner.keeps(state)

    def answers(self, answer: Message, frame: bytes) -> None:
        if self._owner is not None:
            self._owner.answers(answer, frame)

    def complains(self, line: str) -> None:
        if self._owner is not None:
            self._owner.complains(line)


class _Stepwise:
    """Awaits something, and tells of each step from one pause to the next how long it took."""

    def __init__(self, awaitable: Awaitable[Any], note: Callable[[float], None]) -> None:
        self._awaitable = awaitable
        self._note = note

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaitable.__await__()
        thrown: BaseException | None = None
        while True:
            began_s = time.perf_counter()
            try:
                pause = next(steps) if thrown is None else _throw(steps, thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                self._note(time.perf_counter() - began_s)
            try:
                yield pause
                thrown = None
            except GeneratorExit:
                if isinstance(steps, Generator):
                    steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - cancellation, on its way to the agent
                thrown = error


def _throw(steps: Any, error: BaseException) -> Any:
    if hasattr(steps, "throw"):
        return steps.throw(error)
    raise error


def _reason(task: asyncio.Task[None]) -> str:
    """Why a task ended."""
    if task.cancelled():
        return "it was cancelled"
    error = task.exception()
    return "it ended" if error is None else line_of(error)
