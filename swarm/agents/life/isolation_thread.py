"""An agent in a thread of its own, with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from swarm.agents.base import State, Voice
from swarm.agents.life.isolation import CANCEL_S, TEARDOWN_S, Bound, Circumstances, Owner, bound, first_of, tune
from swarm.agents.life.runner import Runner, line_of
from swarm.agents.life.vitals import Vitals
from swarm.agents.spec import AgentSpec
from swarm.channels.messages import Message, Payload
from swarm.errors import AgentFailedError


class Hailing:
    """The voice of an agent in a thread of its own: what it says is said on the host's loop."""

    def __init__(self, voice: Voice, loop: asyncio.AbstractEventLoop) -> None:
        self._voice = voice
        self._loop = loop

    async def _there(self, coroutine: Any) -> Any:
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise

    async def send(self, message: Message, timeout_s: float) -> None:
        await self._there(self._voice.send(message, timeout_s))

    async def request(self, message: Message, timeout_s: float) -> Payload:
        return await self._there(self._voice.request(message, timeout_s))

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        told: int = await self._there(self._voice.broadcast(message, to, timeout_s))
        return told


class ThreadBody:
    """An agent in a thread of its own, with an event loop of its own."""

    def __init__(self, spec: AgentSpec, owner: Owner, circumstances: Circumstances) -> None:
        self.vitals = Vitals()
        self._owner: Owner | None = owner
        self._spec = spec
        self._main = circumstances.loop
        self._started: asyncio.Future[None] = self._main.create_future()
        self._over: asyncio.Future[str] = self._main.create_future()
        self._inside: asyncio.AbstractEventLoop | None = None
        self._living: asyncio.Task[Any] | None = None
        self._left = False
        self._stopped = False
        voice = Hailing(Bound(circumstances.surroundings.voice, spec.agent_id), self._main)
        surroundings = bound(circumstances.surroundings, voice, spec)
        audit, self._log = surroundings.audit, surroundings.log
        surroundings.audit = lambda what, **details: self._tell(lambda: audit(what, **details))
        self._runner = Runner(
            lambda: spec.agent_class(spec.agent_id, **spec.options),
            surroundings,
            self,
            self.vitals,
            interval_s=spec.interval,
            optimization_interval_s=circumstances.optimization_interval_s,
            cpu_clock=time.thread_time,
        )
        self._thread = threading.Thread(target=self._run, name=f"swarm-agent-{spec.agent_id}", daemon=True)
        self._state: State = {}

    async def start(self, state: State) -> None:
        self._state = state
        self._thread.start()
        await first_of(self._started, self._over)
        if not self._started.done():
            self._thread.join()
            raise AgentFailedError(self._over.result())

    def give(self, frame: bytes, message: Message | None) -> None:
        self._tell_inside(lambda: self._runner.give(message or frame))

    async def stop(self) -> None:
        if self._thread.ident is None:
            return
        self._stopped = True
        self._tell_inside(self._runner.stop if self._started.done() else self._cancel)
        await asyncio.wait({self._over}, timeout=TEARDOWN_S)
        if self._over.done():
            self._thread.join()
        else:
            self._log.error("thread_left", reason="teardown did not return", action=await self.leave())
        self._owner = None

    async def leave(self) -> str:
        """A thread can't be ended. Should its code ever return, it tears down and ends by itself."""
        self._owner = None
        if self._over.done():
            self._thread.join()
            return ""
        self._tell_inside(self._cancel)
        await asyncio.wait({self._over}, timeout=CANCEL_S)
        if self._over.done():
            self._thread.join()
            return "it was cancelled"
        self._left = True
        return f"its thread {self._thread.native_id} was left behind"

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # In the thread.

    def _run(self) -> None:
        try:
            self._tune()
            asyncio.run(self._live())
            reason = "it ended"
        except BaseException as error:  # noqa: BLE001 - the host must hear of any end
            reason = line_of(error)
        self._tell(lambda: self._has_ended(reason))

    async def _live(self) -> None:
        self._living = asyncio.current_task()
        self._inside = asyncio.get_running_loop()
        if self._left or self._stopped:
            return  # it was stopped before it could hear of it
        await self._runner.run(self._state)

    def _tune(self) -> None:
        """Linux keeps nice and affinity for each thread (setpriority(2), sched_setaffinity(2))."""
        for line in tune(self._spec, threading.get_native_id()):
            self._log.warning("tuning_absent", reason=line)

    def started(self) -> None:
        self._tell(lambda: self._started.set_result(None))

    def wants(self) -> None:
        self._tell_owner("wants")

    def keeps(self, state: bytes) -> None:
        self._tell_owner("keeps", state)

    def answers(self, answer: Message, frame: bytes) -> None:
        self._tell_owner("answers", answer, frame)

    def complains(self, line: str) -> None:
        self._tell_owner("complains", line)

    def _tell_owner(self, what: str, *arguments: Any) -> None:
        def tell() -> None:
            if self._owner is not None:
                getattr(self._owner, what)(*arguments)

        self._tell(tell)

    def _tell(self, what: Callable[[], Any]) -> None:
        if not self._left:
            with contextlib.suppress(RuntimeError):  # the host's loop is closed: nobody is there to be told
                self._main.call_soon_threadsafe(what)

    # On the host's loop.

    def _tell_inside(self, what: Callable[[], Any]) -> None:
        if self._inside is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended, and says so
                self._inside.call_soon_threadsafe(what)

    def _cancel(self) -> None:
        if self._living is not None:
            self._living.cancel()

    def _has_ended(self, reason: str) -> None:
        self._over.set_result(reason)
        if self._owner is not None and self._started.done():
            self._owner.ended(reason)
