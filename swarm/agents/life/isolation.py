"""Where a life of an agent runs: on the event loop of its host, in a thread of its own, or in a process of its own.

All three are a `Body`, which `swarm.agents.life.charge` starts, watches and ends; one that has ended is not used again.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from swarm.agents.base import State, Surroundings, Voice
from swarm.agents.life.nursery import Nursery
from swarm.agents.life.runner import line_of
from swarm.agents.life.vitals import Vitals
from swarm.agents.spec import AgentSpec
from swarm.channels.messages import Message, Payload
from swarm.errors import ForbiddenMessageError

TEARDOWN_S = 5.0
"""How long an agent may take to end; then it is left or killed."""
CANCEL_S = 1.0
"""How long one that is late may take to end when it is cancelled; it is to run again within two seconds."""


class Owner(Protocol):
    """Whom a body tells, on the host's event loop, as long as it has not been left."""

    def wants(self) -> None: ...

    def keeps(self, state: bytes) -> None: ...

    def answers(self, answer: Message, frame: bytes) -> None:
        """`frame` is the answer, encoded."""

    def complains(self, line: str) -> None: ...

    def ended(self, reason: str) -> None:
        """It has ended, perhaps because it was asked to."""

    def holds(self, longest_s: float) -> None:
        """It makes a habit of holding the loop."""


class Body(Protocol):
    """One life of an agent, as its host sees it."""

    vitals: Vitals

    async def start(self, state: State) -> None:
        """Returns when the agent runs; raises AgentFailedError if it does not come to that."""

    def give(self, frame: bytes, message: Message | None) -> None:
        """The message that the agent wanted; as it is read, if somebody has read it."""

    async def stop(self) -> None:
        """End it after its turn, with `teardown`; afterwards nothing of it runs, or it is out of reach.

        What it says on the way is still told to its owner.
        """

    async def leave(self) -> str:
        """End it by force, or leave it behind, if it has not ended; returns what was done, for the log."""


class Courier(Voice, Protocol):
    """The voice of a process."""

    def send_now(self, message: Message, frame: bytes) -> bool:
        """As `send`, if nothing has to be waited for; False when it has. `frame` is the message, encoded."""
        ...


@dataclass
class Circumstances:
    """What the agents of one process share."""

    loop: asyncio.AbstractEventLoop
    surroundings: Surroundings
    """As for an agent on the loop; the voice says what any agent of this process may say."""
    courier: Courier
    """The same voice, for answers."""
    settings: dict[str, Any]
    """All settings as data, for processes."""
    optimization_interval_s: float
    nursery: Nursery = field(default_factory=Nursery)
    """Of those in processes of their own."""


class Bound:
    """The voice of one agent: it speaks in no other's name."""

    def __init__(self, voice: Voice, agent_id: str) -> None:
        self._voice = voice
        self._agent_id = agent_id

    def _check(self, message: Message) -> None:
        if message.sender != self._agent_id:
            raise ForbiddenMessageError(f"{self._agent_id} can't send a message in the name of {message.sender}")

    async def send(self, message: Message, timeout_s: float) -> None:
        self._check(message)
        await self._voice.send(message, timeout_s)

    async def request(self, message: Message, timeout_s: float) -> Payload:
        self._check(message)
        return await self._voice.request(message, timeout_s)

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        self._check(message)
        return await self._voice.broadcast(message, to, timeout_s)


def bound(surroundings: Surroundings, voice: Voice, spec: AgentSpec) -> Surroundings:
    """The surroundings of one agent."""
    audit = surroundings.audit

    def audited(what: str, **details: Any) -> None:
        audit(what, agent=spec.agent_id, **details)

    return replace(surroundings, voice=voice, audit=audited, log=surroundings.log.bind(agent=spec.agent_id))


async def first_of(*futures: asyncio.Future[Any]) -> None:
    """Wait until one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def tune(spec: AgentSpec, who: int) -> list[str]:
    """Give a thread, or process, its priority and its cores; returns what can't be had, and why."""
    absent = []
    if spec.cpu_affinity is not None:
        try:
            os.sched_setaffinity(who, spec.cpu_affinity)
        except (OSError, ValueError, AttributeError) as error:
            absent.append(f"cpu_affinity {sorted(spec.cpu_affinity)}: {line_of(error)}")
    if spec.priority:
        try:
            os.setpriority(os.PRIO_PROCESS, who, spec.priority)
        except OSError as error:
            absent.append(f"priority {spec.priority}: {line_of(error)}")
    return absent
