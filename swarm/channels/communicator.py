"""How the agents of one process reach all others: here, on this host, or on another one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from swarm import errors
from swarm.channels.acl import AccessRules
from swarm.channels.messages import ANSWER, ERROR, Message, Payload, Priority, decode, encode
from swarm.channels.statistics import Histogram
from swarm.errors import (
    AgentError,
    AgentFailedError,
    ChannelError,
    ChannelFullError,
    ForbiddenMessageError,
    MessageError,
    NoAnswerError,
    PeerLostError,
    SwarmError,
    UnknownAgentError,
)
from swarm.telemetry.logs import get_logger


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where an agent lives, as the scheduler knows it.

    Attributes
    ----------
    station
        Id of the process.
    address
        Of the Dask server in that process.
    socket
        Path at which the process listens on its host; empty if it does not.
    host
        The same for processes that can meet at such a path, and for no others.
    """

    agent: str
    kind: str
    station: str
    address: str
    socket: str
    host: str

    def to_wire(self) -> list[str]:
        return [self.agent, self.kind, self.station, self.address, self.socket, self.host]

    @classmethod
    def from_wire(cls, said: object) -> Whereabouts:
        if not (isinstance(said, list | tuple) and len(said) == 6 and all(isinstance(each, str) for each in said)):
            raise MessageError(f"whereabouts of an agent are {said!r}, must be 6 texts")
        return cls(*said)


class Locals(Protocol):
    """The agents of this process (`swarm.agents.life.supervisor.Supervisor`)."""

    def __contains__(self, agent: object) -> bool: ...

    def deliver(self, agent_id: str, frame: bytes, priority: Priority, message: Message | None = None) -> bool: ...

    async def room(self, agent_id: str, priority: Priority, timeout_s: float) -> bool: ...


class Carrier(Protocol):
    """A way to another process. Sending returns when the process there has taken the frame."""

    name: str

    def reaches(self, to: Whereabouts) -> bool: ...

    def send_now(self, to: Whereabouts, frame: bytes, priority: Priority) -> bool:
        """Send without waiting for anything; False when that can't be, and nothing was sent."""
        ...

    async def send(self, to: Whereabouts, frame: bytes, priority: Priority, timeout_s: float) -> None: ...


class Registrar(Protocol):
    """Who knows where agents are: the scheduler, directly or over Dask."""

    async def find(self, agent: str) -> Whereabouts: ...

    async def of_kind(self, kind: str) -> list[Whereabouts]: ...


Audit = Callable[..., None]


class Communicator:
    """Sends for the agents of a process, and hands them what arrives.

    Parameters
    ----------
    me
        Id of this process.
    carriers
        Ways to other processes, the best first; the first that works for a place is used, the others when it fails.
    audit
        Called with what was refused.
    """

    def __init__(
        self,
        me: str,
        locals_: Callable[[], Locals | None],
        registrar: Registrar,
        carriers: list[Carrier],
        rules: AccessRules,
        audit: Audit,
    ) -> None:
        self.me = me
        self._locals = locals_
        self._registrar = registrar
        self.carriers = carriers
        self._rules = rules
        self._audit = audit
        self._known: dict[str, Whereabouts] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[str, asyncio.Future[Message]]] = {}
        self.aliases: set[str] = set()
        """Names beside those of agents that this process speaks for."""
        self.hear: Callable[[Message], None] | None = None
        """Takes what is sent to one of these, or raises an `AgentError`; nobody does where it is None."""
        self._log = get_logger(agent="communicator")
        self._round_trips = Histogram()
        self.sent = self.received = self.refused = self.failed = 0
        self.by_carrier: dict[str, int] = {}

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send(self, message: Message, timeout_s: float) -> None:
        """Send a message; returns when the recipient's mailbox, or the process that has it, has taken it.

        Raises
        ------
        UnknownAgentError, ChannelFullError, PeerLostError, MessageError, ForbiddenMessageError
            As `swarm.BaseAgent.send` says.
        """
        try:
            if not message.number and message.answers is None:
                message = _numbered(message, next(self._numbers))
            frame = encode(message)
            if self.send_now(message, frame):
                return
            await self._send(message, frame, timeout_s)
        except SwarmError:
            self.failed += 1
            raise
        self.sent += 1

    def send_now(self, message: Message, frame: bytes) -> bool:
        """As `send`, if the way is known and open; False when `send` has to be awaited. `frame` is the message."""
        agents = self._locals()
        if message.recipient in self.aliases or (agents is not None and message.recipient in agents):
            if message.answers is None:
                return False
            self._answered(message)
        else:
            entry = self._known.get(message.recipient)
            if entry is None or not (message.answers is not None or self._is_known_to_be_allowed(message, entry)):
                return False
            carrier = next((each for each in self.carriers if each.reaches(entry)), None)
            if carrier is None or not carrier.send_now(entry, frame, message.priority):
                return False
            self.by_carrier[carrier.name] = self.by_carrier.get(carrier.name, 0) + 1
        self.sent += 1
        return True

    def _is_known_to_be_allowed(self, message: Message, recipient: Whereabouts) -> bool:
        sender = self._known.get(message.sender)
        return sender is not None and self._rules.allows(sender.kind, message.kind, recipient.kind)

    async def request(self, message: Message, timeout_s: float) -> Payload:
        """Send a message and return what its recipient answers.

        Raises
        ------
        NoAnswerError, AgentFailedError
            Beside those of `send`.
        """
        began_ns = time.perf_counter_ns()
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Message] = loop.create_future()
        self._asked[number] = (message.recipient, future)
        timer = loop.call_later(timeout_s, _expire, future)
        try:
            await self.send(_numbered(message, number, wants_answer=True), timeout_s)
            answer = await future
        except TimeoutError:
            raise NoAnswerError(
                f"{message.recipient} has taken {message.kind} from {message.sender} and not answered within "
                f"{timeout_s:g} s; it is busy, or hangs: see swarm status"
            ) from None
        finally:
            timer.cancel()
            del self._asked[number]
        self._round_trips.add(time.perf_counter_ns() - began_ns)
        if answer.kind == ERROR:
            raise error_of(answer.payload)
        return answer.payload

    async def broadcast(self, message: Message, to: str, timeout_s: float) -> int:
        """Send a message to all agents of a kind or group, `*` for all, the sender aside; returns how many took it."""
        others = [entry for entry in await self._registrar.of_kind(to) if entry.agent != message.sender]
        for entry in others:
            self._known[entry.agent] = entry
        sends = (self.send(replace(message, recipient=entry.agent, number=0), timeout_s) for entry in others)
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, AgentError):
                raise outcome
        return sum(outcome is None for outcome in outcomes)

    async def _send(self, message: Message, frame: bytes, timeout_s: float) -> None:
        agents = self._locals()
        is_here = agents is not None and message.recipient in agents
        if message.answers is not None and (is_here or message.recipient in self.aliases):
            self._answered(message)
            return
        if agents is not None and is_here:
            frame = frame or encode(message)
            if not agents.deliver(message.recipient, frame, message.priority):
                await self._deliver_when_there_is_room(agents, message.recipient, frame, message.priority, timeout_s)
            self.by_carrier["direct"] = self.by_carrier.get("direct", 0) + 1
            return
        entry = await self._find(message.recipient)
        if self.hear is not None and message.recipient in self.aliases:
            await self._check_rules(message, entry)
            self.hear(message)
            return
        if entry.agent != message.recipient:  # it was the name of a group
            await self._send(replace(message, recipient=entry.agent), b"", timeout_s)
            return
        frame = frame or encode(message)
        await self._check_rules(message, entry)
        try:
            await self._carry(entry, frame, message.priority, timeout_s)
        except (UnknownAgentError, PeerLostError):
            # It has moved: ask again where it is, once.
            self._known.pop(message.recipient, None)
            now = await self._find(message.recipient)
            if now == entry:
                raise
            await self._carry(now, frame, message.priority, timeout_s)

    async def _deliver_when_there_is_room(
        self, agents: Locals, agent: str, frame: bytes, priority: Priority, timeout_s: float
    ) -> None:
        deadline_s = time.monotonic() + timeout_s
        while await agents.room(agent, priority, max(0.0, deadline_s - time.monotonic())):
            if agents.deliver(agent, frame, priority):
                return
        raise ChannelFullError(f"{agent} has made no room within {timeout_s:g} s; send less, or wait longer")

    async def _carry(self, entry: Whereabouts, frame: bytes, priority: Priority, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        reasons = []
        for carrier in self.carriers:
            if not carrier.reaches(entry):
                continue
            try:
                await carrier.send(entry, frame, priority, max(0.0, deadline_s - time.monotonic()))
            except ChannelFullError:
                raise
            except ChannelError as error:
                reasons.append(f"{carrier.name}: {error}")
                lost = error
                continue
            self.by_carrier[carrier.name] = self.by_carrier.get(carrier.name, 0) + 1
            return
        if not reasons:
            raise ChannelError(f"there is no way from here to {entry.agent} at {entry.address or entry.socket}")
        raise type(lost)("; ".join(reasons))

    async def _find(self, agent: str) -> Whereabouts:
        if (entry := self._known.get(agent)) is None:
            entry = await self._registrar.find(agent)
            if entry.agent == agent:  # a group's name means another of its agents each time
                self._known[agent] = entry
        return entry

    def forget(self, agent: str) -> None:
        """The agent is not where it was."""
        self._known.pop(agent, None)

    # -- what arrives -------------------------------------------------------------------------------------------------

    async def arrived(self, frame: bytes, station: str, timeout_s: float = 0.0) -> bool:
        """A frame came from the process `station`; False when its recipient has no room now.

        Raises
        ------
        MessageError, ForbiddenMessageError, UnknownAgentError
            It is refused, and that is in the audit trail.
        """
        try:
            message = decode(frame)
            await self._check_sender(message, station)
        except (MessageError, ForbiddenMessageError) as error:
            self.refused += 1
            self._audit("message_refused", station=station, reason=str(error))
            raise
        if message.answers is not None:
            self._answered(message)
            return True
        if self.hear is not None and message.recipient in self.aliases:
            self.hear(message)
            self.received += 1
            return True
        agents = self._locals()
        if agents is None or message.recipient not in agents:
            raise UnknownAgentError(f"{message.recipient} is not here (any more)")
        taken = agents.deliver(message.recipient, frame, message.priority)
        if not taken and timeout_s > 0.0:
            await self._deliver_when_there_is_room(agents, message.recipient, frame, message.priority, timeout_s)
            taken = True
        self.received += taken
        return taken

    def arrived_now(self, frame: bytes, station: str) -> bool | None:
        """As `arrived`, if all that needs to be known is known; None otherwise: then `arrived` has to be awaited."""
        try:
            message = decode(frame)
        except MessageError:
            return None
        sender = self._known.get(message.sender)
        if sender is None or sender.station != station:
            return None
        if message.answers is not None:
            self._answered(message)
            return True
        agents, recipient = self._locals(), self._known.get(message.recipient)
        try:
            if agents is None or recipient is None or not self._rules.allows(sender.kind, message.kind, recipient.kind):
                return None
            taken = agents.deliver(message.recipient, frame, message.priority, message)
        except AgentError:  # it is not here any more, or was given up
            return None
        self.received += taken
        return taken

    async def _check_sender(self, message: Message, station: str) -> None:
        try:
            sender = await self._find(message.sender)
            if sender.station != station:
                self.forget(message.sender)  # it may have moved
                sender = await self._find(message.sender)
        except UnknownAgentError:
            raise ForbiddenMessageError(
                f"{message.kind} from {message.sender}, whom nobody knows, to {message.recipient}"
            ) from None
        if sender.station != station:
            raise ForbiddenMessageError(
                f"{message.kind} to {message.recipient} says it is from {message.sender}, who is not in the process "
                f"that sent it"
            )
        await self._check_rules(message, await self._find(message.recipient))

    async def _check_rules(self, message: Message, recipient: Whereabouts) -> None:
        if message.answers is not None:
            return  # who may ask may be answered
        sender = await self._find(message.sender)
        if not self._rules.allows(sender.kind, message.kind, recipient.kind):
            raise ForbiddenMessageError(
                f"{message.sender} ({sender.kind}) may not send {message.kind} to {message.recipient} "
                f"({recipient.kind}); docs/agents.md tells who may"
            )

    def _answered(self, message: Message) -> None:
        assert message.answers is not None
        who, future = self._asked.get(message.answers, ("", None))
        if future is None or future.done():
            return  # too late: whoever asked has been told so
        if message.kind not in (ANSWER, ERROR):
            self._audit("message_refused", reason=f"{message.kind} of {message.sender} is no kind of answer to {who}")
            return
        future.set_result(message)

    # -- for people ---------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counts, and how long requests take, in microseconds."""
        p50_ns, p99_ns = (self._round_trips.quantile(q) for q in (0.5, 0.99))
        return {
            "sent": self.sent,
            "received": self.received,
            "refused": self.refused,
            "failed": self.failed,
            "waiting_for_answers": len(self._asked),
            "by_carrier": dict(self.by_carrier),
            "round_trip_p50_us": None if p50_ns is None else p50_ns / 1e3,
            "round_trip_p99_us": None if p99_ns is None else p99_ns / 1e3,
        }


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def _numbered(message: Message, number: int, *, wants_answer: bool | None = None) -> Message:
    """As `dataclasses.replace`, which takes ten times as long."""
    return Message(
        message.sender,
        message.recipient,
        message.kind,
        message.payload,
        message.priority,
        number,
        message.answers,
        message.wants_answer if wants_answer is None else wants_answer,
    )


def error_of(payload: object) -> SwarmError:
    """The error that an answer carries, as an exception of its own class if that is one of ours."""
    said = payload if isinstance(payload, Mapping) else {}
    named: object = getattr(errors, str(said.get("error")), None)
    kind = named if isinstance(named, type) and issubclass(named, SwarmError) else AgentFailedError
    return kind(str(said.get("message", payload)))
