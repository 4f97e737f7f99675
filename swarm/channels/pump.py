"""Reads the rings of one link on the event loop: urgent ones first, in bounded turns, asleep when there is nothing."""

from __future__ import annotations

import time
from typing import Protocol

from swarm.channels.connection import TURN_S
from swarm.channels.link import Shared
from swarm.channels.mailbox import Turns
from swarm.channels.rings import ReadingRings
from swarm.channels.wire import PRIORITIES, Header
from swarm.errors import ChannelError


class Reader(Protocol):
    """Who gets what is read."""

    def is_free(self, priority: int) -> bool:
        """Whether a frame of this priority can be taken now; if not, `Pump.soon` is called when it can."""
        ...

    def on_ring_record(self, header: Header, body: bytes) -> None: ...

    def on_pumped(self, *, is_much: bool) -> None:
        """A batch is done; `is_much` when the writer may wait for room."""
        ...

    def on_rings_broken(self, reason: str) -> None: ...

    def on_rings_empty(self) -> None:
        """After `drain`: there was nothing more."""
        ...


class Pump:
    """Takes records out of rings for a reader."""

    def __init__(self, shared: Shared, rings: ReadingRings, reader: Reader) -> None:
        self._loop, self._rings, self._reader = shared.loop, rings, reader
        self._heads: list[tuple[Header, bytes] | None] = [None] * PRIORITIES
        self._turns = Turns()
        self._awake = [True] * PRIORITIES
        """Those that do not ring the bell at their next record, so that one has to look."""
        self._is_due = False
        self._is_draining = False
        self._is_closed = False
        self._unsaid_bytes = 0
        self._loop.add_reader(rings.bell, self._rang)

    def soon(self) -> None:
        """Look into the rings at the next turn of the loop."""
        if not self._is_due and not self._is_closed:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def drain(self) -> None:
        """The writer is gone: read to the end, then say so."""
        self._is_draining = True
        self._awake = [True] * PRIORITIES
        self.soon()

    def close(self) -> None:
        """Let go of the rings."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._rings.bell)
            self._rings.close()

    def _rang(self) -> None:
        for priority in self._rings.rang():
            self._awake[priority] = True
        if not self._is_due:
            self._turn()

    def _turn(self) -> None:
        self._is_due = False
        until_s = time.monotonic() + TURN_S
        try:
            while not self._is_closed:
                priority = self._next_priority()
                if priority is None:
                    if self._may_rest():
                        break
                    continue
                head = self._heads[priority]
                assert head is not None
                self._heads[priority] = None
                header, body = head
                self._unsaid_bytes += len(body) + 64
                self._reader.on_ring_record(header, body)
                if time.monotonic() > until_s:
                    self.soon()
                    break
        except ChannelError as error:
            self._reader.on_rings_broken(str(error))
            return
        if self._unsaid_bytes:
            is_much = 4 * self._unsaid_bytes >= self._rings.size_bytes
            if is_much:
                self._unsaid_bytes = 0
            self._reader.on_pumped(is_much=is_much)

    def _next_priority(self) -> int | None:
        heads, is_free = self._heads, self._reader.is_free
        waiting = [False] * PRIORITIES
        for priority, is_awake in enumerate(self._awake):
            if is_awake and is_free(priority):
                if heads[priority] is None:
                    heads[priority] = self._rings.take(priority)
                waiting[priority] = heads[priority] is not None
        return self._turns.next_of(waiting)

    def _may_rest(self) -> bool:
        """Nothing to read: rest until the bell rings, or what is held moves. False when something has just come."""
        free = [priority for priority in range(PRIORITIES) if self._reader.is_free(priority)]
        if self._is_draining and len(free) == PRIORITIES:
            self._reader.on_rings_empty()
            return True
        for priority in free:
            if self._awake[priority]:
                self._awake[priority] = not self._rings.rest(priority)
        return not any(self._awake[priority] for priority in free)
