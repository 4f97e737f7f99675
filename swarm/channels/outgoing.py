"""The sending end of a link: numbers frames, keeps them until the peer has them, heals, and changes the transport."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from swarm.channels import handshake, references
from swarm.channels.connection import Connection
from swarm.channels.dialling import dial
from swarm.channels.handshake import HungUpError, PeerInfo
from swarm.channels.lane import Lane, Sent
from swarm.channels.link import HANDSHAKE_S, Shared
from swarm.channels.messages import MAX_BYTES, Priority
from swarm.channels.switching import Switch
from swarm.channels.wire import PRIORITIES, STATE, Header, Kind
from swarm.errors import ChannelError, ChannelFullError, MessageTooLargeError, PeerLostError

ATTEMPTS = 3
"""To heal a link with a station that listens, but does not answer."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 2.0
LONG_LIFE_S = 5.0
"""A connection that held for so long is healed at once; pauses double for one that breaks again and again."""


class Outgoing:
    """A link to one station.

    Parameters
    ----------
    on_lost
        Called when the peer has ended, or can't be reached any more: the link is of no use then.
    """

    def __init__(
        self, shared: Shared, path: Path, peer_id: str, on_lost: Callable[[Outgoing, ChannelError], None]
    ) -> None:
        self.shared, self.path, self.peer_id = shared, path, peer_id
        self.peer: PeerInfo | None = None
        self.lost: ChannelError | None = None
        self.heals = 0
        self._on_lost = on_lost
        self._session = secrets.token_bytes(handshake.SESSION_BYTES)
        self._was_open = False
        self._lanes = [Lane() for _ in range(PRIORITIES)]
        self._connection: Connection | None = None
        self._opening: asyncio.Task[object] | None = None
        self._welcome: asyncio.Future[bytes] | None = None
        self._pause_s = 0.0
        self._opened_at_s = 0.0
        self.switch = Switch(shared, self.peer_id, self._resend_from_rings, self._wake)
        flow = shared.statistics.flow
        self._by_socket = [flow(peer_id, "sent", p, "socket") for p in range(PRIORITIES)]
        self._by_ring = [flow(peer_id, "sent", p, "ring") for p in range(PRIORITIES)]

    # -- sending --------------------------------------------------------------------------------------------------

    async def send(self, frame: bytes, priority: Priority, timeout_s: float) -> None:
        """Return when the peer's station has taken the frame.

        Raises
        ------
        ChannelFullError
            It did not within `timeout_s`.
        PeerLostError
            Its process has ended.
        ChannelError
            It does not trust us, or we it.
        """
        if len(frame) > MAX_BYTES:
            raise MessageTooLargeError(f"a frame has {len(frame)} bytes, at most {MAX_BYTES} are allowed")
        lane = self._lanes[priority]
        deadline_s = self.shared.loop.time() + timeout_s
        sent = None
        if not lane.waiting and not _is_large(frame):
            sent = self._try(lane, frame, priority)
        if sent is None:
            sent = await self._send_in_turn(lane, frame, priority, deadline_s, timeout_s)
        if sent.taken is not None:
            await self._until_taken(sent, priority, deadline_s, timeout_s)
        self.switch.count(self._connection)

    def send_now(self, frame: bytes, priority: Priority) -> bool:
        """Put a frame into the ring, if there is one and it has room; False when `send` has to be awaited."""
        lane, connection = self._lanes[priority], self._connection
        if connection is None or self.lost is not None or lane.waiting or _is_large(frame):
            return False
        return bool(self._put(connection, lane, frame, priority))

    async def _send_in_turn(
        self, lane: Lane, frame: bytes, priority: Priority, deadline_s: float, timeout_s: float
    ) -> Sent:
        """After all that came before; waits for the link to open and for room."""
        lane.waiting += 1
        reference: tuple[int, bytes] | None = None
        try:
            async with asyncio.timeout_at(deadline_s), lane.turn:
                if _is_large(frame):
                    reference = await self._refer_to(frame)
                while True:
                    if self._connection is None:
                        await self.open()
                    lane.room.clear()
                    sent = self._try(lane, frame, priority, reference)
                    if sent is not None:
                        reference = None
                        return sent
                    await lane.room.wait()
        except TimeoutError:
            self._by_socket[priority].drops += 1
            raise ChannelFullError(
                f"station {self.peer_id} made no room for a frame of {len(frame)} bytes within {timeout_s:g} s"
            ) from None
        finally:
            lane.waiting -= 1
            if reference is not None:
                references.drop(reference[0])

    async def _until_taken(self, sent: Sent, priority: Priority, deadline_s: float, timeout_s: float) -> None:
        taken = sent.taken
        assert taken is not None
        timer = self.shared.loop.call_at(deadline_s, _expire, taken)
        try:
            await taken
        except TimeoutError:
            self._by_socket[priority].drops += 1
            raise ChannelFullError(
                f"station {self.peer_id} did not confirm a frame of {len(sent.frame)} bytes within {timeout_s:g} s; "
                "it may still take it"
            ) from None
        finally:
            timer.cancel()

    def _try(
        self, lane: Lane, frame: bytes, priority: Priority, reference: tuple[int, bytes] | None = None
    ) -> Sent | None:
        """Send now if there is room; None when not."""
        if self.lost is not None:
            raise type(self.lost)(str(self.lost))
        connection = self._connection
        if connection is None:
            return None
        if reference is None and (put := self._put(connection, lane, frame, priority)) is not None:
            return put or None
        size = len(frame)
        if lane.in_flight and lane.in_flight_bytes + size > self.shared.options.channel_size:
            return None
        sent = Sent(lane.next, frame, time.monotonic_ns(), self.shared.loop.create_future())
        lane.next += 1
        lane.untaken.append(sent)
        self._by_socket[priority].count(size)
        self._transmit(connection, lane, priority, sent, reference)
        return sent

    def _put(
        self, connection: Connection, lane: Lane, frame: bytes, priority: Priority
    ) -> Sent | Literal[False] | None:
        """Into the ring; False when it is full, None when there is none, or no more."""
        size = len(frame)
        if not self.switch.takes(size):
            return None
        sent = Sent(lane.next, frame, time.monotonic_ns(), None)
        put = self.switch.put(connection, priority, sent.sequence, sent.sent_ns, frame)
        if not put:
            return put
        lane.next += 1
        lane.untaken.append(sent)
        self._by_ring[priority].count(size)
        return sent

    def _transmit(
        self, connection: Connection, lane: Lane, priority: int, sent: Sent, reference: tuple[int, bytes] | None
    ) -> None:
        size = len(sent.frame)
        lane.in_flight.append((sent.sequence, size))
        lane.in_flight_bytes += size
        if reference is None:
            connection.send(Kind.FRAME, sent.frame, priority, sent.sequence, sent.sent_ns)
        else:
            fd, body = reference
            connection.send(Kind.REFERENCE, body, priority, sent.sequence, sent.sent_ns, (fd,))

    async def _refer_to(self, frame: bytes) -> tuple[int, bytes]:
        encrypt = self.shared.options.encrypt
        if len(frame) < references.THREAD_BYTES:
            return references.write(frame, encrypt=encrypt)
        return await references.in_thread(references.write, frame, encrypt=encrypt)

    def _wake(self) -> None:
        """Let those who wait for room look again."""
        for lane in self._lanes:
            lane.room.set()

    # -- what comes back ------------------------------------------------------------------------------------------

    def _on_record(self, header: Header, body: bytes, fds: Sequence[int]) -> None:
        references.drop(*fds)  # none belongs to what a peer may send us on this link
        if header.kind == Kind.ACK:
            self._confirm(body)
        elif header.kind == Kind.WELCOME and self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(body)
        elif header.kind in (Kind.RINGS_READY, Kind.RINGS_REFUSED, Kind.RINGS_BROKEN):
            self.switch.on_answer(Kind(header.kind), body)
        else:
            raise ChannelError(f"station {self.peer_id} sent a record of kind {header.kind} that does not belong here")

    def _confirm(self, body: bytes) -> None:
        """Let go of what the peer has."""
        if len(body) != STATE.size:
            raise ChannelError(f"station {self.peer_id} confirms with {len(body)} bytes, must be {STATE.size}")
        state = STATE.unpack(body)
        for lane, taken, done in zip(self._lanes, state[:PRIORITIES], state[PRIORITIES:], strict=True):
            if taken == lane.taken and done == lane.done:
                continue
            if not lane.confirm(taken, done):
                raise ChannelError(f"station {self.peer_id} confirms {taken}, what was sent is {lane.next - 1}")
            if lane.waiting:
                lane.room.set()

    def _resend_from_rings(self) -> None:
        """The rings are gone: what may be left in them goes over the socket, in order."""
        connection = self._connection
        if connection is None:
            return
        for priority, lane in enumerate(self._lanes):
            for sent in lane.untaken:
                if sent.by_ring:
                    sent.taken = self.shared.loop.create_future()
                    self._transmit(connection, lane, priority, sent, None)
            lane.in_flight = deque(sorted(lane.in_flight))
        self._wake()

    # -- opening and healing --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Wait until the link is open. Raises `ChannelError` when it can't be."""
        if self.lost is not None:
            raise type(self.lost)(str(self.lost))
        if self._connection is None:
            if self._opening is None:
                self._opening = self.shared.spawn(self._open(), f"link to {self.peer_id}")
            await asyncio.shield(self._opening)
            if self.lost is not None:
                raise type(self.lost)(str(self.lost))

    async def hasten(self) -> bool:
        """Move into shared memory now; whether it could be."""
        await self.open()
        connection = self._connection
        return connection is not None and await self.switch.hasten(connection)

    async def _open(self) -> None:
        try:
            for attempt in itertools.count(1):
                await asyncio.sleep(self._pause_s)
                try:
                    async with asyncio.timeout(HANDSHAKE_S):
                        connection, state = await self._connect()
                except TimeoutError:
                    # It lives, so what was promised is kept for it: its event loop may be held by a task for minutes.
                    if attempt >= ATTEMPTS and self.is_idle:
                        raise ChannelFullError(f"station {self.peer_id} listens, but does not answer") from None
                except HungUpError:
                    if attempt >= ATTEMPTS:
                        raise
                else:
                    if await self._resume(connection, state):
                        return
                self._lengthen_pause()
        except ChannelError as error:
            self.lose(error)
        except OSError as error:
            self.lose(ChannelError(f"no link to station {self.peer_id} at {self.path} ({error.strerror})"))
        finally:
            self._opening = None

    async def _connect(self) -> tuple[Connection, bytes]:
        """A new connection, and what the peer says that it has."""
        shared = self.shared
        sock, agreed = await dial(shared, self.path, self.peer_id, self._session)
        self.peer = agreed.peer
        self._welcome = shared.loop.create_future()
        connection = Connection(
            sock, agreed.keys, is_caller=True, on_record=self._on_record, on_turn=_nothing, on_closed=self._on_closed
        )
        try:
            state = await self._welcome
        except BaseException:
            connection.close()
            raise
        self.switch.keys = agreed.keys
        return connection, state

    async def _resume(self, connection: Connection, state: bytes) -> bool:
        """Go on where the peer is; send again what it does not have. False when the connection broke meanwhile."""
        is_known, state = state[:1] == b"\1", state[1:]
        if self._was_open and not is_known:
            connection.close()
            raise PeerLostError(f"station {self.peer_id} was started anew and does not know what was sent before")
        self.heals += self._was_open
        self._was_open = True
        self._confirm(state)
        for priority, lane in enumerate(self._lanes):
            lane.in_flight.clear()
            lane.in_flight_bytes = 0
            for sent in list(lane.untaken):
                sent.taken = sent.taken or self.shared.loop.create_future()
                reference = await self._refer_to(sent.frame) if _is_large(sent.frame) else None
                if connection.is_closed:
                    references.drop(*([reference[0]] if reference else []))
                    return False
                self._transmit(connection, lane, priority, sent, reference)
        if connection.is_closed:
            return False
        self._connection = connection
        self._opened_at_s = self.shared.loop.time()
        self._wake()
        return True

    def _on_closed(self, reason: str) -> None:
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(HungUpError(f"station {self.peer_id} refused the link: {reason}"))
            return
        self._connection = None
        self.switch.drop(f"the socket broke: {reason}", is_their_fault=False)
        if self.shared.loop.time() - self._opened_at_s > LONG_LIFE_S:
            self._pause_s = 0.0
        else:
            self._lengthen_pause()
        if self.lost is None and self._opening is None:
            # At once, also if nothing waits: that is how the end of a peer is noticed.
            self._opening = self.shared.spawn(self._open(), f"link to {self.peer_id}")

    def _lengthen_pause(self) -> None:
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LAST_PAUSE_S)

    def lose(self, error: ChannelError) -> None:
        """Give the link up: all who wait get the error."""
        if self.lost is not None:
            return
        self.lost = error
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.switch.drop(str(error), is_their_fault=False)
        for priority, lane in enumerate(self._lanes):
            for sent in lane.untaken:
                self._by_socket[priority].drops += 1
                if sent.taken is not None and not sent.taken.done():
                    sent.taken.set_exception(type(error)(str(error)))
                    sent.taken.exception()  # its sender may have given up already
            lane.untaken.clear()
        self._wake()
        self._on_lost(self, error)

    @property
    def is_idle(self) -> bool:
        """Whether the peer has all that was sent."""
        return not any(lane.untaken or lane.waiting for lane in self._lanes)

    def plain(self) -> dict[str, object]:
        """As data: what it uses, and why it uses no rings."""
        return {
            "peer": self.peer_id,
            "direction": "sent",
            "transport": self.switch.transport,
            "why_no_ring": self.switch.why_not,
            "ring_breaks": self.switch.breaks,
            "heals": self.heals,
            "fill_bytes": [lane.in_flight_bytes for lane in self._lanes],
            "fill_ratio": max(lane.in_flight_bytes for lane in self._lanes) / self.shared.options.channel_size,
        }


def _is_large(frame: bytes) -> bool:
    return len(frame) >= references.REFERENCE_BYTES and references.AVAILABLE


def _nothing() -> None:
    """After a batch of confirmations there is nothing to do."""


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
