"""What an agent in a process of its own and its host say to each other: msgpack over a socket pair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

import msgpack

from swarm.channels.messages import MAX_BYTES

MOST_BYTES = MAX_BYTES + (1 << 20)
"""A message of any size that is allowed, and a little around it."""


class Op(IntEnum):
    """What a line is about: [op, arguments …]."""

    # To the agent.
    HELLO = 1
    GIVE = 2
    STOP = 3
    CANCEL = 4
    RESULT = 5
    REFUSAL = 6
    # From the agent.
    STARTED = 10
    WANTS = 11
    KEEPS = 12
    ANSWERS = 13
    COMPLAINS = 14
    FAILED = 15
    SAYS = 16
    AUDIT = 17


class Wire(asyncio.Protocol):
    """One end.

    Parameters
    ----------
    heard
        Called with each line, an op and a list of its arguments; what it raises breaks the wire.
    lost
        Called once, when the other end is gone or has sent what it may not; with what was wrong, if anything was.
    most_items
        In one list or dict of what is heard: a few bytes may promise a list of millions, for which memory is taken.
    """

    def __init__(
        self, heard: Callable[[Op, list[Any]], None], lost: Callable[[str], None], most_items: int = MAX_BYTES
    ) -> None:
        self._heard = heard
        self._lost = lost
        self._wrong = ""
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=MOST_BYTES, max_array_len=most_items, max_map_len=most_items, strict_map_key=False
        )
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._unpacker.feed(data)
            for line in self._unpacker:
                op, *arguments = line
                self._heard(Op(op), arguments)
        except (ValueError, TypeError, msgpack.UnpackException) as error:  # BufferFull is one of the last
            self._wrong = f"{type(error).__name__}: {error}"
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost(self._wrong)

    def say(self, op: Op, *arguments: Any) -> None:
        """Send a line; does nothing when the other end is gone."""
        if self._transport is not None:
            self._transport.write(msgpack.packb([int(op), *arguments]))

    def close(self) -> None:
        """Send what is on its way, and close."""
        if self._transport is not None:
            self._transport.close()
