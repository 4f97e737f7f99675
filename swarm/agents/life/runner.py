"""Runs one life of an agent: the same code on the loop of a worker, in a thread and in a process of its own.

The agent's methods are called one at a time: `restore`, `setup`, then cycles and messages in turn, `teardown`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from swarm.agents.base import BaseAgent, State, Surroundings
from swarm.agents.life.first_step import FirstStep
from swarm.agents.life.vitals import Doing, Vitals
from swarm.agents.spec import pack_state
from swarm.channels.messages import ERROR, Message, decode, encode
from swarm.errors import AgentFailedError, MessageError


class Port(Protocol):
    """What a life tells its host; called in the thread, or process, that it runs in."""

    def started(self) -> None:
        """`setup` has returned."""

    def wants(self) -> None:
        """It is free for a message: the next goes to `Runner.give`, now or when there is one."""

    def keeps(self, state: bytes) -> None:
        """Its state is another one now."""

    def answers(self, answer: Message, frame: bytes) -> None:
        """Send this to who waits for it; `frame` is the answer, encoded."""

    def complains(self, line: str) -> None:
        """Something went wrong, and the agent goes on."""


class Runner:
    """One life.

    Parameters
    ----------
    make
        Makes the agent.
    surroundings
        What it is given.
    drive
        Calls a method of the agent and awaits what it returns, if need be; a host may measure in it.
    context
        Of the task that `run` is in: then a message for an agent that rests is begun by whoever brings it.
    """

    def __init__(
        self,
        make: Callable[[], BaseAgent],
        surroundings: Surroundings,
        port: Port,
        vitals: Vitals,
        *,
        interval_s: float,
        optimization_interval_s: float,
        cpu_clock: Callable[[], float] | None = None,
        drive: Callable[..., Any] | None = None,
        context: Context | None = None,
    ) -> None:
        self._make = make
        self._surroundings = surroundings
        self._port = port
        self._vitals = vitals
        self._interval_s = interval_s
        self._optimization_interval_s = optimization_interval_s
        self._cpu_clock = cpu_clock
        self._drive = drive or _drive
        self._context = context
        self._resting: tuple[BaseAgent, asyncio.Task[Any], float] | None = None
        """Who, in which task, and until when (`time.monotonic`), if nothing else happens."""
        self._begun: FirstStep | None = None
        self._hand: bytes | Message | None = None
        self._wanted = False
        self._stopping = False
        self._waiting: asyncio.Future[None] | None = None
        self._kept = pack_state({}, "nothing")
        self._complaints = 0

    # -- for the host, in the runner's own thread -------------------------------------------------------------------

    def give(self, message: bytes | Message) -> None:
        """The message that the runner wanted, encoded or not."""
        self._wanted = False
        self._hand = message
        if not self._begin():
            self._wake()

    def stop(self) -> None:
        """End after the turn that is under way."""
        self._stopping = True
        self._wake()

    async def run(self, state: State) -> None:
        """Live until `stop` is called.

        Raises
        ------
        Exception
            What the agent raised in `__init__`, `restore`, `setup`, `state` or `execute_cycle`.
        """
        with self._vitals.turn(Doing.SETUP):
            agent = self._make()
            agent.surroundings = self._surroundings
            if state:
                await self._drive(agent.restore, state)
            await self._drive(agent.setup)
        try:
            self._keep(agent)
            self._port.started()
            await self._live(agent)
        finally:
            await self._tear_down(agent)

    # -- turns ------------------------------------------------------------------------------------------------------

    async def _live(self, agent: BaseAgent) -> None:
        now_s = time.monotonic()
        never_s = float("inf")
        # A class that leaves them as they are needs no timer for them.
        cycle_at_s = now_s if _overrides(agent, "execute_cycle") else never_s
        optimizes = _overrides(agent, "optimize_performance") or _overrides(agent, "_agent_specific_optimization")
        optimize_at_s = now_s + self._optimization_interval_s if optimizes else never_s
        turn_of_messages = False
        while not self._stopping:
            now_s = time.monotonic()
            # A cycle goes first when it is due; but after one that took too long, a message has its turn.
            if cycle_at_s <= now_s and not (turn_of_messages and self._hand is not None):
                await self._cycle(agent)
                cycle_at_s = max(now_s + self._interval_s, time.monotonic())
                turn_of_messages = True
            elif self._hand is not None:
                given, self._hand = self._hand, None
                await self._handle(agent, given)
                turn_of_messages = False
            elif optimize_at_s <= now_s:
                await self._optimize(agent)
                optimize_at_s = time.monotonic() + self._optimization_interval_s
            else:
                await self._rest(agent, min(cycle_at_s, optimize_at_s))
                continue
            if self._cpu_clock is not None:
                self._vitals.note_cpu(self._cpu_clock())
            if self._hand is not None or min(cycle_at_s, optimize_at_s) <= time.monotonic():
                await asyncio.sleep(0)  # an agent with no end of work lets others have the loop between its turns

    async def _cycle(self, agent: BaseAgent) -> None:
        began_s = time.monotonic()
        with self._vitals.turn(Doing.CYCLE):
            await self._drive(agent.execute_cycle)
            self._keep(agent)
        self._vitals.count_cycle(time.monotonic() - began_s)
        if self._hand is None:
            self._want()  # after a long cycle the next is due at once; what waits has its turn before it

    async def _handle(self, agent: BaseAgent, given: bytes | Message) -> None:
        failure: Exception | None = None
        message: Message | None = None
        result: Any = None
        with self._vitals.turn(Doing.MESSAGE):  # until all is counted and answered: a crash is either before or after
            self._vitals.begin_message()
            try:
                message = given if isinstance(given, Message) else decode(given)
                result = await self._drive(agent.handle_message, message)
            except Exception as error:  # noqa: BLE001 - it goes to whoever asked, and into the log
                failure = error
            self._keep(agent)
            if message is not None and message.wants_answer:
                reply = message.answer(result) if failure is None else failed(message, failure)
                try:
                    frame = encode(reply)
                except MessageError as error:
                    failure = error
                    reply = failed(message, error)
                    frame = encode(reply)
                self._port.answers(reply, frame)
            self._vitals.count_message(failed=failure is not None)
        if failure is not None:
            self._complain("message_failed", failure, kind=None if message is None else message.kind)

    async def _optimize(self, agent: BaseAgent) -> None:
        with self._vitals.turn(Doing.OPTIMIZING):
            try:
                await self._drive(agent.optimize_performance)
            except Exception as error:  # noqa: BLE001 - what an agent improves is not its work
                self._complain("optimization_failed", error)

    async def _tear_down(self, agent: BaseAgent) -> None:
        with self._vitals.turn(Doing.TEARDOWN):
            try:
                await self._drive(agent.teardown)
            except Exception as error:  # noqa: BLE001 - its life is over either way
                self._complain("teardown_failed", error)

    def _keep(self, agent: BaseAgent) -> None:
        kept = pack_state(agent.state(), f"agent {agent.agent_id}")
        if kept != self._kept:
            self._kept = kept
            self._port.keeps(kept)

    def _complain(self, what: str, error: Exception, **about: object) -> None:
        self._complaints += 1
        if self._complaints & (self._complaints - 1) == 0:  # once in powers of two
            self._surroundings.log.error(what, count=self._complaints, exc_info=error, **about)
        self._port.complains(f"{what.replace('_', ' ')}: {line_of(error)}")

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _want(self) -> None:
        if not self._wanted:
            self._wanted = True
            self._port.wants()

    def _begin(self) -> bool:
        """Handle what is in hand now, while the agent rests; False when it has to be woken for that."""
        resting, self._resting = self._resting, None
        if resting is None or self._hand is None or self._context is None:
            return False
        agent, task, until_s = resting
        is_woken = self._waiting is None or self._waiting.done()
        if is_woken or asyncio.current_task() is not None or time.monotonic() >= until_s:
            return False
        given, self._hand = self._hand, None
        step = FirstStep(self._handle(agent, given), task, self._context)
        if not step.is_over:
            self._begun = step
            return False
        return self._rest_on(resting)

    def _rest_on(self, resting: tuple[BaseAgent, asyncio.Task[Any], float]) -> bool:
        """After what was handled at once; False when there is more to do."""
        if self._stopping:
            return False
        self._want()
        if self._hand is not None:
            return False
        self._resting = resting
        return True

    async def _rest(self, agent: BaseAgent, until_s: float) -> None:
        """Wait for a message, the end, or a time."""
        self._want()
        if self._hand is not None or self._stopping:
            await asyncio.sleep(0)  # as in `_live`
            return
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        task = asyncio.current_task()
        if self._context is not None and task is not None:
            self._resting = (agent, task, until_s)
        timer = None
        if until_s < float("inf"):
            timer = loop.call_later(max(until_s - time.monotonic(), 0.0), self._wake)
        try:
            await self._waiting
        except asyncio.CancelledError as error:
            if self._begun is None:
                raise
            self._begun.cancel(error)
        finally:
            self._waiting = self._resting = None
            if timer is not None:
                timer.cancel()
        if self._begun is not None:
            begun, self._begun = self._begun, None
            await begun

    def _wake(self) -> None:
        self._resting = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


async def _drive(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, await it if need be."""
    with no_exit():
        result = method(*arguments)
        return await result if inspect.isawaitable(result) else result


class no_exit:  # noqa: N801 - as those of contextlib; a class, since it is entered for each message
    """An agent may end itself by `sys.exit`, not the worker that it lives on."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, SystemExit):
            raise AgentFailedError(f"it called sys.exit({error.code!r})") from error


def _overrides(agent: BaseAgent, method: str) -> bool:
    return getattr(type(agent), method) is not getattr(BaseAgent, method)


def failed(request: Message, error: BaseException | str) -> Message:
    """The answer to a request that came to nothing."""
    name = AgentFailedError.__name__ if isinstance(error, str) else type(error).__name__
    text = error if isinstance(error, str) else one_line(str(error))
    return request.answer({"error": name, "message": text}, ERROR)


def line_of(error: BaseException) -> str:
    """An exception in one line.

    >>> line_of(OSError("disk full"))
    'OSError: disk full'
    """
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


MOST_CHARACTERS = 1000
"""Of an error's message that is passed on."""


def one_line(text: str) -> str:
    """The text without what would break the line, and not too long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MOST_CHARACTERS else f"{flat[: MOST_CHARACTERS - 1]}…"
