"""When a link that has much to carry moves from the socket into shared memory, and back when that breaks."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Literal

from swarm.channels import rings
from swarm.channels.connection import Connection
from swarm.channels.link import Shared
from swarm.channels.rings import WritingRings
from swarm.channels.security import Keys
from swarm.channels.wire import Kind
from swarm.errors import ChannelError

WINDOW_S = 1.0
"""In which `hasten_after` messages make a move worth it: numba takes more memory than a quiet channel deserves."""
MAX_BREAKS = 3
"""Rings that broke so often on one link are not tried again."""
READY_S = 60.0
"""For the peer to import numba as well, on a busy machine."""
GENERATION = struct.Struct("<I")


class Switch:
    """Of one outgoing link.

    Parameters
    ----------
    resend
        Sends again over the socket what may be left in rings.
    wake
        Tells those who wait for room to look again.
    """

    def __init__(self, shared: Shared, peer_id: str, resend: Callable[[], None], wake: Callable[[], None]) -> None:
        self._shared, self._peer_id, self._resend, self._wake = shared, peer_id, resend, wake
        self.keys: Keys | None = None
        self.why_not = "not enough messages yet" if shared.options.hasten_after is not None else "switched off"
        self._is_final = False
        self._rings: WritingRings | None = None
        self._messages = 0
        self._since_s = 0.0
        self.breaks = 0
        """Of rings; that of a socket is no fault of theirs."""
        self._generation = 0
        self._answer: asyncio.Future[str] | None = None
        self._moving: asyncio.Task[object] | None = None

    @property
    def transport(self) -> Literal["socket", "ring"]:
        return "socket" if self._rings is None else "ring"

    def count(self, connection: Connection | None) -> None:
        """One more message was sent: enough to make a move worth it?"""
        now_s = time.monotonic()
        if now_s - self._since_s > WINDOW_S:
            self._since_s, self._messages = now_s, 0
        self._messages += 1
        after = self._shared.options.hasten_after
        if self._is_final or self._rings is not None or after is None or self._messages <= after:
            return
        if self._moving is None and connection is not None:
            self._begin(connection)

    async def hasten(self, connection: Connection) -> bool:
        """Move now, if it can be; whether rings are used."""
        if self._rings is None and not self._is_final:
            if self._moving is None:
                self._begin(connection)
            assert self._moving is not None
            await asyncio.shield(self._moving)
        return self._rings is not None

    def _begin(self, connection: Connection) -> None:
        self._messages = 0
        self._moving = self._shared.spawn(self._move(connection), f"rings to {self._peer_id}")

    async def _move(self, connection: Connection) -> None:
        try:
            why_not = await rings.load()
            if why_not:
                self.why_not, self._is_final = why_not, True
                return
            self._generation += 1
            new = WritingRings(self._shared.options.channel_size, self.keys, self._generation)
            try:
                self._rings = await self._offer(connection, new)
            finally:
                if self._rings is not new:
                    new.close()
            self._wake()
        except (ChannelError, OSError) as error:
            self.why_not = str(error)
            self.breaks += 1
            self._is_final = self.breaks >= MAX_BREAKS
        finally:
            self._answer = None
            self._moving = None

    async def _offer(self, connection: Connection, new: WritingRings) -> WritingRings | None:
        """The rings, if the peer takes them."""
        self._answer = self._shared.loop.create_future()
        connection.send(Kind.RINGS, GENERATION.pack(self._generation), fds=new.duplicates())
        try:
            async with asyncio.timeout(READY_S):
                self.why_not = await self._answer
        except TimeoutError:
            self.why_not = f"station {self._peer_id} did not answer within {READY_S:g} s"
        return None if self.why_not or connection.is_closed else new

    def on_answer(self, kind: Kind, body: bytes) -> None:
        """What the peer says about rings."""
        reason = body.decode(errors="replace")[:200]
        if kind == Kind.RINGS_BROKEN:
            self.drop(reason)
            self._resend()
        elif self._answer is not None and not self._answer.done():
            if kind == Kind.RINGS_REFUSED:
                self._is_final = True
                reason = f"station {self._peer_id} takes none: {reason}"
            self._answer.set_result(reason if kind == Kind.RINGS_REFUSED else "")

    def takes(self, size: int) -> bool:
        """Whether a frame of this size goes through a ring now."""
        return self._rings is not None and size <= self._rings.largest_frame

    def put(self, connection: Connection, priority: int, sequence: int, sent_ns: int, frame: bytes) -> bool | None:
        """True: it is in the ring; False: the ring is full; None: the ring broke, and the socket is in use again."""
        assert self._rings is not None
        try:
            return self._rings.put(priority, sequence, sent_ns, frame)
        except ChannelError as error:
            self.drop(str(error), tell=connection)
            self._resend()
            return None

    def drop(self, reason: str, *, tell: Connection | None = None, is_their_fault: bool = True) -> None:
        """Use rings no longer."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reason)
        if self._rings is None:
            return
        self._rings.close()
        self._rings = None
        self._messages = 0
        self.breaks += is_their_fault
        self.why_not = reason
        if self.breaks >= MAX_BREAKS:
            self._is_final = True
            self.why_not = f"broke {self.breaks} times, last: {reason}"
        if tell is not None:
            tell.send(Kind.RINGS_BROKEN, reason.encode()[:200])
