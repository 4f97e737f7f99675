"""The streams between the scheduler and a worker, as `distributed.batched.BatchedSend` but without a coroutine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed.comm.core import CommClosedError

from swarm.twin.network import Fabric


class Stream:
    """One direction: messages that are sent within an interval travel together."""

    __slots__ = (
        "_address",
        "_buffer",
        "_fabric",
        "_is_closed",
        "_is_planned",
        "_next_s",
        "_receive",
        "_to",
        "interval_s",
    )

    def __init__(
        self, fabric: Fabric, address: str, to: str, interval_s: float, receive: Callable[[list[Any]], object]
    ) -> None:
        self._fabric = fabric
        self._address = address
        self._to = to
        self._receive = receive
        self.interval_s = interval_s
        self._buffer: list[Any] = []
        self._is_planned = False
        self._is_closed = False
        self._next_s = 0.0

    def send(self, *messages: Any) -> None:
        """As `BatchedSend.send`."""
        if self._is_closed:
            raise CommClosedError(f"stream to {self._to} is closed")
        self._buffer.extend(messages)
        if not self._is_planned:
            self._is_planned = True
            fabric = self._fabric
            if fabric.is_delivering and fabric.loop.now_s >= self._next_s:
                fabric.full_streams.append(self)
            else:
                fabric.loop.schedule(max(fabric.loop.now_s, self._next_s), self.flush)

    def flush(self) -> None:
        """Put what has been sent on its way."""
        self._is_planned = False
        batch, self._buffer = self._buffer, []
        if self._is_closed or not batch:
            return
        self._next_s = self._fabric.loop.now_s + self.interval_s
        self._fabric.carry(self._address, self._to, 0, len(batch), self._receive, batch)

    def closed(self) -> bool:
        return self._is_closed

    def abort(self) -> None:
        self._is_closed = True
        self._buffer.clear()

    async def close(self, timeout: float | None = None) -> None:
        self.flush()
        self.abort()

    @property
    def comm(self) -> Stream:
        """As the attribute of `BatchedSend`, for who asks whether the stream is closed."""
        return self
