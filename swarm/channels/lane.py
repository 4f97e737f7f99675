"""What was sent with one priority and is not confirmed yet."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Sent:
    """A frame that the peer's station has not confirmed yet."""

    sequence: int
    frame: bytes
    sent_ns: int
    taken: asyncio.Future[None] | None
    """None for one in a ring: its sender does not wait."""

    @property
    def by_ring(self) -> bool:
        return self.taken is None


class Lane:
    """One priority."""

    __slots__ = ("done", "in_flight", "in_flight_bytes", "next", "room", "taken", "turn", "untaken", "waiting")

    def __init__(self) -> None:
        self.next = 1
        self.taken = self.done = 0
        self.untaken: deque[Sent] = deque()
        self.in_flight: deque[tuple[int, int]] = deque()
        """(number, bytes) of those on the socket that their recipient does not have yet."""
        self.in_flight_bytes = 0
        self.turn = asyncio.Lock()  # first come, first served
        self.waiting = 0
        self.room = asyncio.Event()

    def confirm(self, taken: int, done: int) -> bool:
        """The peer's station has all up to `taken`, their recipient all up to `done`; False when that can't be."""
        if not (self.taken <= taken < self.next and self.done <= done <= taken):
            return False
        self.taken, self.done = taken, done
        while self.untaken and self.untaken[0].sequence <= taken:
            future = self.untaken.popleft().taken
            if future is not None and not future.done():
                future.set_result(None)
        while self.in_flight and self.in_flight[0][0] <= done:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        return True
