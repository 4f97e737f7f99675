"""Messages between agents, and their form on the wire.  PURE

A message is data: what `msgpack <https://github.com/msgpack/msgpack/blob/master/spec.md>`_ carries, in an array of
fixed order. Whoever receives one checks every field before using any; nothing is ever unpickled.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import msgpack

from swarm.errors import AgentDefinitionError, MessageError, MessageTooLargeError

Payload: TypeAlias = Any
"""None, bool, int (64 bits), float, str, bytes, and lists and dicts of these."""

WIRE_VERSION = 1
MAX_BYTES = 64 << 20
"""Of an encoded message. More than that belongs into a Dask future, of which the key is sent."""
MAX_DEPTH = 32
"""Of lists and dicts in a payload."""
MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,{MAX_NAME - 1}}}")

ERROR = "error"
"""Kind of the answer to a request that failed: its payload names the error's class and message."""
ANSWER = "answer"


class Priority(IntEnum):
    """What is read first; `swarm.channels.mailbox.Mailbox` has the rule that keeps the last from starving."""

    URGENT = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


PRIORITY = tuple(Priority)
"""By number."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, from one agent to one agent.

    Attributes
    ----------
    sender, recipient
        Ids of agents (`check_name`).
    kind
        What it is about, such as `execute_workload`: what `handle_message` looks at first, and what access rules name.
    payload
        Data; see `Payload`.
    number
        Counted by the process of the sender, so that an answer finds its request.
    answers
        The number of the request that this answers.
    wants_answer
        The sender waits for what `handle_message` returns.
    """

    sender: str
    recipient: str
    kind: str
    payload: Payload = None
    priority: Priority = Priority.NORMAL
    number: int = 0
    answers: int | None = None
    wants_answer: bool = False

    def answer(self, payload: Payload, kind: str = ANSWER) -> Message:
        """The message back, with the same priority."""
        return Message(self.recipient, self.sender, kind, payload, self.priority, answers=self.number)


def check_name(name: object, what: str = "id of an agent") -> str:
    """`name`, if an agent or a kind of message may be called so.

    Raises
    ------
    AgentDefinitionError
        It may not; says what is allowed.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        allowed = f"1 to {MAX_NAME} letters, digits and _ . : -, with a letter, digit or _ first"
        raise AgentDefinitionError(f"{what} is {reprlib.repr(name)}, must be {allowed}")
    return name


def encode(message: Message) -> bytes:
    """The message as bytes.

    Raises
    ------
    MessageError
        The payload holds what can't travel; says what.
    MessageTooLargeError
        More than `MAX_BYTES`.
    """
    fields = (
        WIRE_VERSION,
        message.number,
        message.sender,
        message.recipient,
        message.kind,
        int(message.priority),
        message.answers,
        message.wants_answer,
        message.payload,
    )
    try:
        frame: bytes = msgpack.packb(fields)
    except (TypeError, ValueError, OverflowError) as error:  # RecursionError of msgpack is a ValueError
        what = "None, bool, int of 64 bits, float, str, bytes, lists and dicts"
        about = f"{message.kind} from {message.sender} to {message.recipient}"
        raise MessageError(f"payload of {about} can't be sent ({error}); it may hold {what}") from None
    if len(frame) > MAX_BYTES:
        raise MessageTooLargeError(
            f"{message.kind} from {message.sender} to {message.recipient} has {len(frame)} bytes, at most {MAX_BYTES} "
            "are allowed; send the key of a Dask future instead"
        )
    return frame


def decode(frame: bytes | memoryview) -> Message:
    """Read what `encode` wrote.

    Raises
    ------
    MessageError
        It is something else; says what is wrong with it.
    """
    if len(frame) > MAX_BYTES:
        raise MessageTooLargeError(f"a message has {len(frame)} bytes, at most {MAX_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(frame, max_map_len=MAX_BYTES, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MessageError(f"{len(frame)} bytes are no message: {error or type(error).__name__}") from None
    if not isinstance(fields, list) or len(fields) != 9:
        raise MessageError(f"a message is {reprlib.repr(fields)}, must be an array of 9 fields")
    version, number, sender, recipient, kind, priority, answers, wants_answer, payload = fields
    if version != WIRE_VERSION or version is True:
        raise MessageError(f"a message has version {reprlib.repr(version)}, this is version {WIRE_VERSION}")
    try:
        check_name(sender, "sender of a message")
        check_name(recipient, "recipient of a message")
        check_name(kind, "kind of a message")
    except AgentDefinitionError as error:
        raise MessageError(str(error)) from None
    if not (_is_count(number) and (answers is None or _is_count(answers)) and isinstance(wants_answer, bool)):
        raise MessageError(f"{kind} from {sender} has a wrong number: {reprlib.repr([number, answers, wants_answer])}")
    if not (_is_count(priority) and priority < len(PRIORITY)):
        raise MessageError(f"{kind} from {sender} has priority {reprlib.repr(priority)}, must be 0 to 3")
    if _depth(payload) > MAX_DEPTH:
        raise MessageError(f"payload of {kind} from {sender} is nested deeper than {MAX_DEPTH} levels")
    return Message(sender, recipient, kind, payload, PRIORITY[priority], number, answers, wants_answer)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _depth(payload: object) -> int:
    """How deep lists and dicts are nested, without recursion; stops one beyond what is allowed."""
    if payload.__class__ is not list and payload.__class__ is not dict:
        return 0
    level: list[Any] = [payload]
    for depth in range(MAX_DEPTH + 2):
        level = [
            inner
            for outer in level
            if outer.__class__ is list or outer.__class__ is dict
            for inner in (outer.values() if outer.__class__ is dict else outer)
        ]
        if not level:
            return depth
    return MAX_DEPTH + 1
