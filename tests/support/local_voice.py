"""A voice between the agents of one supervisor, and the test."""

from __future__ import annotations

import asyncio
import itertools
import time

from swarm.agents.life.supervisor import Supervisor
from swarm.channels.messages import ERROR, Message, Payload, Priority, encode
from swarm.errors import AgentError, AgentFailedError, ChannelFullError, NoAnswerError, UnknownAgentError


class LocalVoice:
    """Delivers to the agents of one supervisor; answers to `ask` come back to it."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self.sent: list[Message] = []
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    async def send(self, message: Message, timeout_s: float) -> None:
        self.sent.append(message)
        if message.answers is not None:
            waiting = self._waiting.get(message.answers)
            if waiting is None or waiting.done():
                raise UnknownAgentError(f"nobody waits for {message.answers}")
            waiting.set_result(message)
            return
        assert self.supervisor is not None
        deadline_s = time.monotonic() + timeout_s
        frame = encode(message)
        while not await self._deliver(message, frame):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not await self.supervisor.room(message.recipient, message.priority, left_s):
                raise ChannelFullError(f"{message.recipient} made no room within {timeout_s:g} s")

    def send_now(self, message: Message, frame: bytes) -> bool:
        return False

    async def _deliver(self, message: Message, frame: bytes) -> bool:
        """From a callback of the loop, as channels do."""
        assert self.supervisor is not None
        loop, deliver = asyncio.get_running_loop(), self.supervisor.deliver
        taken: asyncio.Future[bool] = loop.create_future()

        def now() -> None:
            try:
                taken.set_result(deliver(message.recipient, frame, message.priority))
            except AgentError as error:
                taken.set_exception(error)

        loop.call_soon(now)
        return await taken

    async def request(self, message: Message, timeout_s: float) -> Payload:
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        asked = Message(
            message.sender, message.recipient, message.kind, message.payload, message.priority, number, None, True
        )
        try:
            await self.send(asked, timeout_s)
            answer = await asyncio.wait_for(waiting, timeout_s)
        except TimeoutError:
            raise NoAnswerError(f"{message.recipient} did not answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]
        if answer.kind == ERROR:
            raise AgentFailedError(f"{answer.payload['error']}: {answer.payload['message']}")
        return answer.payload

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        assert self.supervisor is not None
        others = [about["id"] for about in self.supervisor.status() if about["id"] != message.sender]
        for other in others:
            await self.send(Message(message.sender, other, message.kind, message.payload), timeout_s)
        return len(others)

    async def ask(
        self, recipient: str, kind: str, payload: Payload = None, priority: Priority = Priority.NORMAL
    ) -> Payload:
        """A request of the test itself."""
        return await self.request(Message("test", recipient, kind, payload, priority), 10.0)

    async def tell(
        self, recipient: str, kind: str, payload: Payload = None, priority: Priority = Priority.NORMAL
    ) -> None:
        """A message of the test itself."""
        await self.send(Message("test", recipient, kind, payload, priority), 10.0)
