"""One agent in the care of a supervisor: its lives one after another, and the state that goes from one to the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from swarm.agents.base import Isolation
from swarm.agents.life.isolation import Body, Circumstances, first_of
from swarm.agents.life.isolation_loop import LoopBody
from swarm.agents.life.isolation_thread import ThreadBody
from swarm.agents.life.lifecycle import Decision, GiveUp, Happened, Life, RestartRule, Stage, Start
from swarm.agents.life.post import Post
from swarm.agents.life.runner import line_of
from swarm.agents.life.vitals import Doing, Record, sane_s
from swarm.agents.spec import AgentSpec, pack_state, unpack_state
from swarm.channels.messages import Message
from swarm.errors import AgentDefinitionError, AgentError, AgentFailedError, UnknownAgentError

START_S = 60.0
"""For `setup`, and for a process to import what its agent needs, on a busy host."""
THREADS_LEFT = 5
"""An agent that leaves more threads behind than this is given up: nothing but the end of the process ends them."""


class Load(NamedTuple):
    """How busy an agent is."""

    restarts: int
    busy_s: float
    """In all of its lives, with what it does now."""
    mailbox_fill_ratio: float


OnEvent = Callable[[str, dict[str, Any]], None]


class Charge:
    """One agent.

    Parameters
    ----------
    on_event
        Called with the name of each change and its details.
    """

    def __init__(
        self, spec: AgentSpec, circumstances: Circumstances, rule: RestartRule, mailbox_bytes: int, on_event: OnEvent
    ) -> None:
        self.spec = spec
        self.isolation: Isolation = spec.isolation or "loop"
        self.life = Life(rule, time.monotonic())
        self.last_error: str | None = None
        self._circumstances = circumstances
        self._on_event = on_event
        self._log = circumstances.surroundings.log.bind(agent=spec.agent_id)
        self.post = Post(spec.agent_id, mailbox_bytes, circumstances.courier, self._log, circumstances.loop)
        self._state = pack_state(spec.state, spec.agent_id)
        self._record = Record()
        self._body: Body | None = None
        self._started_s = 0.0
        self._running: asyncio.Future[None] = circumstances.loop.create_future()
        self._fault: asyncio.Future[str] = circumstances.loop.create_future()
        self._held: asyncio.Future[float] = circumstances.loop.create_future()
        self._living: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._threads_left: list[ThreadBody] = []
        self._moves = 0
        self._seen_late: tuple[Doing, float] | None = None

    # -- for the supervisor -------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Returns when the agent runs.

        Raises
        ------
        AgentFailedError, AgentDefinitionError
            It did not come to that.
        """
        self._living = asyncio.create_task(self._live(), name=f"swarm-charge-{self.spec.agent_id}")
        self._living.add_done_callback(self._lives_no_more)
        await asyncio.shield(self._running)

    async def end(self) -> None:
        """Returns when nothing of the agent runs any more; may be called by several."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    def look(self, now_s: float) -> None:
        """See whether the agent still comes back; what is late twice in a row is not to be waited for."""
        body = self._body
        if body is None or self.life.stage is not Stage.RUNNING:
            return
        doing, since_s = body.vitals.doing, body.vitals.since_s
        if doing is Doing.NOTHING:
            since_s = self.post.waits_since_s(body.vitals) or now_s
        if now_s - since_s <= self.spec.cycle_timeout_s:
            self._seen_late = None
        elif self._seen_late != (doing, since_s):
            self._seen_late = (doing, since_s)  # were it this host that stood still, the agent gets time to go on
        else:
            self._end_life(f"{_WHAT[doing]} took longer than {self.spec.cycle_timeout_s:g} s")

    def load(self) -> Load:
        """How busy it is; asked with each heartbeat."""
        busy_s = self._record.busy_s
        if self._body is not None:
            busy_s += sane_s(self._body.vitals.busy_s(time.monotonic()))
        return Load(self.life.restarts, busy_s, self.post.mailbox.fill_ratio)

    def status(self) -> dict[str, Any]:
        """What is known of the agent, as data.

        `cpu_s` of an agent on the loop is how long it has held the loop; else it is of its thread or process.
        """
        record = self._record.plus(self._body.vitals if self._body else None)
        return {
            "id": self.spec.agent_id,
            "kind": self.spec.agent_class.kind,
            "class": self.spec.agent_class.__name__,
            "isolation": self.isolation,
            "priority": self.spec.priority,
            "state": str(self.life.stage),
            "since_s": round(time.monotonic() - self.life.since_s, 3),
            "restarts": self.life.restarts,
            "failures_in_a_row": self.life.failures,
            "moves": self._moves,
            "cycles": record.cycles,
            "cycle_p50_ms": record.cycle_ms(0.5),
            "cycle_p99_ms": record.cycle_ms(0.99),
            "cpu_s": round(record.cpu_s, 6),
            "busy_s": round(record.busy_s, 6),
            "last_error": self.last_error,
            "messages_handled": record.handled,
            "messages_failed": record.failed,
            "mailbox_messages": len(self.post.mailbox),
            "mailbox_fill_ratio": round(self.post.mailbox.fill_ratio, 4),
            "answers_lost": self.post.answers_lost,
            "threads_left": len(self._threads_still_left()),
            "pid": getattr(self._body, "pid", None),
        }

    @property
    def kept(self) -> bytes:
        """Its state, packed (`swarm.agents.spec.pack_state`)."""
        return self._state

    # -- what its body tells ------------------------------------------------------------------------------------------

    def wants(self) -> None:
        self.post.wants()

    def keeps(self, state: bytes) -> None:
        self._state = state

    def answers(self, answer: Message, frame: bytes) -> None:
        if answer.answers is None or answer.sender != self.spec.agent_id:
            self.complains(f"{answer.kind} in the name of {answer.sender} is no answer of its own")
            return
        self.post.answers(answer, frame)

    def complains(self, line: str) -> None:
        self.last_error = line

    def ended(self, reason: str) -> None:
        self._end_life(reason)

    def holds(self, longest_s: float) -> None:
        if not self._held.done():
            self._held.set_result(longest_s)

    # -- lives --------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        decision: Decision = Start()
        while isinstance(decision, Start):
            if decision.pause_s:
                await asyncio.sleep(decision.pause_s)
            if self.life.may(Happened.BEGUN):
                self.life.on(Happened.BEGUN, time.monotonic())
            decision = await self._one_life()
        if isinstance(decision, GiveUp):
            self.post.refuse_all(AgentFailedError(f"{self._about} was given up: {self.last_error}"))

    async def _one_life(self) -> Decision:
        self._reset()
        body = self._body = self._new_body()
        try:
            async with asyncio.timeout(START_S):
                await body.start(unpack_state(self._state))
        except TimeoutError:
            why: str | AgentError = f"it did not start within {START_S:g} s"
        except AgentError as error:
            why = error if isinstance(error, AgentDefinitionError) else str(error)
        except Exception as error:  # noqa: BLE001 - such as no memory for a process or a thread
            why = line_of(error)
        else:
            self._has_started()
            await first_of(self._fault, self._held)
            if not self._fault.done():
                return await self._move(body, self._held.result())
            why = self._fault.result()
        return await self._has_failed(body, why)

    def _reset(self) -> None:
        loop = self._circumstances.loop
        self._fault, self._held = loop.create_future(), loop.create_future()
        self._seen_late = None

    def _new_body(self) -> Body:
        if self.isolation == "process":
            from swarm.agents.life.isolation_process import ProcessBody

            return ProcessBody(self.spec, self, self._circumstances)
        return (LoopBody if self.isolation == "loop" else ThreadBody)(self.spec, self, self._circumstances)

    def _has_started(self) -> None:
        self._started_s = time.monotonic()
        self.life.on(Happened.STARTED, self._started_s)
        if not self._running.done():
            self._running.set_result(None)
        self._tell("restarted" if self.life.restarts else "started", restarts=self.life.restarts)
        if self._body is not None:
            self.post.open_for(self._body.give)

    async def _move(self, body: Body, held_s: float) -> Decision:
        """Out of the loop, whose other users have had to wait."""
        self._moves += 1
        decision = self.life.on(Happened.DISPLACED, time.monotonic())
        why = f"it held the event loop for {held_s * 1000:.0f} ms"
        self.post.hold()
        await body.stop()
        self.post.life_ended(body.vitals, why)
        self._bury(body)
        self.isolation = "thread"
        self._tell("moved", isolation=self.isolation, reason=why)
        return decision

    async def _has_failed(self, body: Body, why: str | AgentError) -> Decision:
        now_s = time.monotonic()
        self.last_error = str(why)
        has_run = self.life.stage is Stage.RUNNING
        good_s = max(body.vitals.good_at_s - self._started_s, 0.0) if has_run else 0.0
        self.post.life_ended(body.vitals, str(why))
        action = await body.leave()
        self._bury(body)
        if isinstance(body, ThreadBody) and body.is_alive:
            self._threads_left.append(body)
        if len(self._threads_still_left()) > THREADS_LEFT:
            self.life.on(Happened.GIVEN_UP, now_s)
            decision: Decision = GiveUp(self.life.failures)
        else:
            decision = self.life.on(Happened.FAULTED, now_s, good_s=good_s)
        if isinstance(decision, Start):
            self._tell("degraded", reason=self.last_error, action=action, again_in_s=decision.pause_s)
        elif self._running.done():
            self._tell("failed", reason=self.last_error, failures=self.life.failures)
        else:
            error = why if isinstance(why, AgentError) else AgentFailedError(f"{self._about} did not start: {why}")
            self._running.set_exception(error)
        return decision

    def _bury(self, body: Body) -> None:
        self._record = self._record.plus(body.vitals)
        self._body = None
        body.vitals.close()

    def _end_life(self, why: str) -> None:
        if not self._fault.done():
            self._fault.set_result(why)

    async def _end(self) -> None:
        self.life.on(Happened.STOP_ASKED, time.monotonic())
        self.post.hold()
        self.post.closed = UnknownAgentError(f"{self._about} is being destroyed")
        if not self._running.done():
            self._running.set_exception(AgentFailedError(f"{self._about} was destroyed while it started"))
            self._running.exception()  # nobody may be there to hear it
        if self._living is not None:
            self._living.cancel()
            await asyncio.wait({self._living})
        if self._body is not None:
            await self._body.stop()
            self.post.life_ended(self._body.vitals, "it was destroyed")
            self._bury(self._body)
        await self.post.close(UnknownAgentError(f"{self._about} was destroyed"))
        self.life.on(Happened.ENDED, time.monotonic())
        if self.life.starts:
            self._tell("stopped")

    def _lives_no_more(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("supervision_failed", exc_info=error)
            self.last_error = line_of(error)
            if not self._running.done():
                self._running.set_exception(AgentFailedError(f"{self._about} did not start: {self.last_error}"))

    def _threads_still_left(self) -> list[ThreadBody]:
        self._threads_left = [body for body in self._threads_left if body.is_alive]
        return self._threads_left

    # -- telling ------------------------------------------------------------------------------------------------------

    @property
    def _about(self) -> str:
        return f"agent {self.spec.agent_id}"

    def _tell(self, name: str, **details: Any) -> None:
        about = {"agent": self.spec.agent_id, "kind": self.spec.agent_class.kind, **details}
        try:
            self._on_event(name, about)
        except Exception as error:  # noqa: BLE001 - the agent is not to suffer from who listens
            self._log.error("event_handler_failed", name=name, exc_info=error)


_WHAT = {
    Doing.NOTHING: "taking a message",
    Doing.SETUP: "its setup",
    Doing.CYCLE: "a cycle",
    Doing.MESSAGE: "handling a message",
    Doing.OPTIMIZING: "optimize_performance",
    Doing.TEARDOWN: "its teardown",
}
