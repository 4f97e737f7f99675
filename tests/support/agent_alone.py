"""An agent without a supervisor: a voice that remembers what was said, and surroundings that keep what was audited."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from swarm.agents.base import BaseAgent, Surroundings
from swarm.channels.messages import Message, Payload, decode, encode
from swarm.config import Settings
from swarm.telemetry.logs import get_logger


@dataclass
class FakeVoice:
    """Takes all messages, and answers requests with what the test put into `answers`, by kind."""

    sent: list[Message] = field(default_factory=list)
    answers: dict[str, Payload] = field(default_factory=dict)

    async def send(self, message: Message, timeout_s: float) -> None:
        self.sent.append(decode(encode(message)))

    async def request(self, message: Message, timeout_s: float) -> Payload:
        self.sent.append(decode(encode(message)))
        return self.answers[message.kind]

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        self.sent.append(decode(encode(message)))
        return 1


@dataclass
class Alone:
    """An agent whose methods the test calls."""

    agent: BaseAgent
    dask: Any = None
    place: str = ""
    settings: Settings = field(default_factory=Settings)
    audited: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    voice: FakeVoice = field(default_factory=FakeVoice)

    async def __aenter__(self) -> Alone:
        self.agent.surroundings = Surroundings(
            self.settings,
            get_logger(agent=self.agent.agent_id),
            self.voice,
            self._audit,
            self.place or str(getattr(self.dask, "address", "")),
            self.dask,
        )
        await awaited(self.agent.setup())
        return self

    async def __aexit__(self, *_: object) -> None:
        await awaited(self.agent.teardown())

    async def asks(self, kind: str, payload: Payload = None, sender: str = "tester") -> Payload:
        """What the agent answers, after a journey there and back as bytes."""
        message = decode(encode(Message(sender, self.agent.agent_id, kind, payload, wants_answer=True)))
        answer = await awaited(self.agent.handle_message(message))
        return decode(encode(message.answer(answer))).payload

    async def cycle(self) -> None:
        await awaited(self.agent.execute_cycle())

    def told(self, kind: str) -> list[Payload]:
        """Payloads of the messages of this kind that the agent has sent."""
        return [message.payload for message in self.voice.sent if message.kind == kind]

    def _audit(self, what: str, **details: Any) -> None:
        encode(Message("a", "b", "audit", details))  # data only
        self.audited.append((what, details))


async def awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
