"""The messages of one agent: what waits for it, what it has in hand, what it answers, and who waits for room.

A message is handled once at most, over all lives of the agent. One that was given to it and not begun when a life ended
goes to the next life; one that was begun is answered by an error, for it may be what ended that life.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from swarm.agents.life.isolation import Courier
from swarm.agents.life.runner import failed, line_of
from swarm.agents.life.vitals import Vitals
from swarm.channels.mailbox import Mailbox
from swarm.channels.messages import Message, Priority, decode
from swarm.errors import AgentError, MessageError

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

ANSWER_S = 5.0
"""How long an answer waits for room at who asked."""
FAREWELL_S = 1.0
"""The same, for those who wait for an agent that will not answer any more."""
ANSWERS_AT_ONCE = 64
"""An agent is given no more messages while so many of its answers have not been taken."""
ROOMY = 0.5
"""Senders that wait for room are woken when the mailbox is half empty: not one by one for each message read."""


class Post:
    """Of one agent, over all its lives.

    Parameters
    ----------
    voice
        Carries the answers.
    """

    def __init__(
        self, agent_id: str, capacity_bytes: int, voice: Courier, log: BoundLogger, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.mailbox = Mailbox(capacity_bytes)
        self.answers_lost = 0
        self.closed: AgentError | None = None
        """Why nothing is taken any more."""
        self._agent_id = agent_id
        self._voice = voice
        self._log = log
        self._loop = loop
        self._give: Callable[[bytes, Message | None], None] | None = None
        self._wants = False
        self._hand: bytes | None = None
        """What the agent was given last, in this life."""
        self._handed_s = 0.0
        self._given = 0
        """Messages, in this life."""
        self._again: bytes | None = None
        """What was given and not begun when a life ended."""
        self._sending: set[asyncio.Task[None]] = set()
        self._senders: dict[Priority, list[asyncio.Future[bool]]] = {priority: [] for priority in Priority}

    # -- for senders --------------------------------------------------------------------------------------------------

    def put(self, frame: bytes, priority: Priority, message: Message | None = None) -> bool:
        """Take a message; False when there is no room. `message` is the frame, if it is read already."""
        self._check_open()
        if self._is_ready() and self._again is None and not self.mailbox:
            self._pass(frame, message)
            return True
        if not self.mailbox.put(frame, priority):
            return False
        self._hand_over()
        return True

    async def room(self, priority: Priority, timeout_s: float) -> bool:
        """Wait until there may be room; False when there was none in time."""
        self._check_open()
        if not self.mailbox.fill_at(priority):
            return True
        woken: asyncio.Future[bool] = self._loop.create_future()
        self._senders[priority].append(woken)
        timer = self._loop.call_later(timeout_s, _wake, woken, False)
        try:
            return await woken
        finally:
            timer.cancel()
            if woken in self._senders[priority]:
                self._senders[priority].remove(woken)

    # -- for the agent's lives ----------------------------------------------------------------------------------------

    def open_for(self, give: Callable[[bytes, Message | None], None]) -> None:
        """A life runs; it gets a message whenever it `wants` one."""
        self._give = give
        self._hand_over()

    def wants(self) -> None:
        """The agent is through with what it was given."""
        self._hand = None
        self._wants = True
        self._hand_over()

    def hold(self) -> None:
        """Give nothing more to this life; what it has in hand it may bring to an end."""
        self._give = None

    def life_ended(self, vitals: Vitals, why: str) -> None:
        """Nothing of this life runs any more; see to what it had in hand."""
        frame, self._hand = self._hand, None
        given, self._given = self._given, 0
        self._give, self._wants = None, False
        if frame is None or vitals.messages_done >= given:
            return
        if vitals.messages_begun >= given:
            self._refuse(frame, f"agent {self._agent_id} failed while it handled this: {why}", ANSWER_S)
        else:
            self._again = frame

    def waits_since_s(self, vitals: Vitals) -> float | None:
        """Since when the agent has had a message in hand that it does not begin; None when there is none."""
        if self._hand is None or vitals.messages_begun >= self._given:
            return None
        return max(self._handed_s, vitals.good_at_s)

    def answers(self, answer: Message, frame: bytes) -> None:
        """Send what the agent answers; `frame` is the answer, encoded."""
        if self._sending or not self._voice.send_now(answer, frame):  # those that wait go first
            self._send(answer, ANSWER_S)

    async def close(self, error: AgentError) -> None:
        """Tell all who wait that there will be no answer; afterwards nothing is under way."""
        self.refuse_all(error)
        if self._sending:
            await asyncio.wait(self._sending, timeout=FAREWELL_S)
        for task in self._sending:
            task.cancel()

    def refuse_all(self, error: AgentError) -> None:
        """Take nothing any more; who waits for an answer is told why there will be none."""
        self.closed = error
        frame, self._again = self._again, None
        while frame is not None or (frame := self.mailbox.take()) is not None:
            self._refuse(frame, str(error), FAREWELL_S)
            frame = None
        for priority in Priority:
            self._wake_senders(priority)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed is not None:
            raise type(self.closed)(str(self.closed))  # a new one, since each keeps where it was raised

    def _hand_over(self) -> None:
        """Give the agent a message, if it wants one and there is one."""
        if not self._is_ready():
            return
        frame, self._again = self._again, None
        if frame is None and (frame := self.mailbox.take()) is None:
            return
        for priority, senders in self._senders.items():
            if senders and self.mailbox.fill_at(priority) <= ROOMY:
                self._wake_senders(priority)
        self._pass(frame, None)

    def _is_ready(self) -> bool:
        """The agent wants a message, and may have it."""
        return self._wants and self._give is not None and len(self._sending) < ANSWERS_AT_ONCE

    def _pass(self, frame: bytes, message: Message | None) -> None:
        assert self._give is not None
        self._wants = False
        self._hand = frame
        self._handed_s = time.monotonic()
        self._given += 1
        self._give(frame, message)

    def _wake_senders(self, priority: Priority) -> None:
        senders, self._senders[priority] = self._senders[priority], []
        for woken in senders:
            _wake(woken, True)

    def _refuse(self, frame: bytes, why: str, timeout_s: float) -> None:
        """Tell who waits for an answer to this message that there will be none."""
        try:
            message = decode(frame)
        except MessageError:
            return  # nobody is known who could wait
        if message.wants_answer:
            self._send(failed(message, why), timeout_s)

    def _send(self, answer: Message, timeout_s: float) -> None:
        task = asyncio.create_task(self._try_to_send(answer, timeout_s))
        self._sending.add(task)
        task.add_done_callback(self._sent)

    async def _try_to_send(self, answer: Message, timeout_s: float) -> None:
        try:
            await self._voice.send(answer, timeout_s)
        except Exception as error:  # noqa: BLE001 - whoever asked is gone, or does not read
            self.answers_lost += 1
            if self.answers_lost & (self.answers_lost - 1) == 0:  # once in powers of two
                self._log.warning("answer_lost", to=answer.recipient, count=self.answers_lost, reason=line_of(error))

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._hand_over()


def _wake(sleeper: asyncio.Future[bool], result: bool) -> None:
    if not sleeper.done():
        sleeper.set_result(result)
