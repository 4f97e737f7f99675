"""The receiving end of a link: puts frames in order, hands each over once, and tells the sender what it has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from swarm.channels import references, rings
from swarm.channels.connection import Connection
from swarm.channels.handshake import PeerInfo
from swarm.channels.link import Shared
from swarm.channels.messages import PRIORITY
from swarm.channels.pump import Pump
from swarm.channels.rings import ReadingRings
from swarm.channels.security import Keys
from swarm.channels.statistics import Flow
from swarm.channels.switching import GENERATION
from swarm.channels.wire import PRIORITIES, STATE, Header, Kind
from swarm.errors import ChannelError

log = logging.getLogger(__name__)

ASK_AGAIN_S, LAST_ASK_S = 0.001, 0.05
"""When a recipient had no room, and did not wait for it."""
ACK_AFTER_S = 0.01
"""For what came through a ring: its sender does not wait."""
GAP_S = 1.0
"""A frame that is missing in a ring is on the socket; it has come within this time, or never will."""
MAX_EARLY = 1 << 16
"""Frames that may wait for one that is missing."""


@dataclass(slots=True)
class _Came:
    """A frame that was taken; by reference, it is still in its file."""

    sequence: int
    frame: bytes
    sent_ns: int
    flow: Flow
    fd: int | None = None

    def drop(self) -> None:
        if self.fd is not None:
            references.drop(self.fd)
            self.fd = None


class _Lane:
    """One priority."""

    __slots__ = ("done", "early", "from_ring", "held", "is_busy", "pause_s", "taken", "timer")

    def __init__(self) -> None:
        self.taken = self.done = 0
        self.from_ring = 0
        """Last number that was read from a ring. If it is beyond `taken`, what is between is on the socket."""
        self.held: deque[_Came] = deque()
        self.early: dict[int, _Came] = {}
        self.is_busy = False
        """The recipient takes its time with the first that is held."""
        self.pause_s = ASK_AGAIN_S
        self.timer: asyncio.TimerHandle | None = None


class Incoming:
    """One session of one peer; outlives its connection, so that a healed link goes on where it broke."""

    def __init__(self, shared: Shared, peer: PeerInfo, session: bytes) -> None:
        self.shared, self.peer, self.session = shared, peer, session
        self._lanes = [_Lane() for _ in range(PRIORITIES)]
        self._connection: Connection | None = None
        self._keys: Keys | None = None
        self._pump: Pump | None = None
        self._offered: Sequence[int] = ()
        """Descriptors of rings that are not attached yet."""
        self._told = STATE.pack(*[0] * 2 * PRIORITIES)
        self._ack_timer: asyncio.TimerHandle | None = None
        self._gap_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._failures = 0
        flow = shared.statistics.flow
        self._by_socket = [flow(peer.id, "received", p, "socket") for p in range(PRIORITIES)]
        self._by_ring = [flow(peer.id, "received", p, "ring") for p in range(PRIORITIES)]

    # -- the connection -------------------------------------------------------------------------------------------

    def attach(self, connection: Connection, peer: PeerInfo, keys: Keys | None, *, is_known: bool) -> None:
        """A new connection, the first or after a break."""
        self._drop_rings()  # their sender sends again what it has no word about
        if self._connection is not None:
            self._connection.close()
        self._connection, self.peer, self._keys = connection, peer, keys
        self._told = self._state()
        connection.send(Kind.WELCOME, (b"\1" if is_known else b"\0") + self._told)

    def on_record(self, header: Header, body: bytes, fds: Sequence[int]) -> None:
        """One record of the sender, in the order of the socket."""
        if header.kind == Kind.FRAME:
            came = _Came(header.sequence, body, header.sent_ns, self._by_socket[header.priority])
            self._accept(header.priority, came)
        elif header.kind == Kind.REFERENCE:
            came = _Came(header.sequence, body, header.sent_ns, self._by_socket[header.priority], fds[0])
            try:
                references.check(fds[0], body, encrypted=self._keys is not None)
            except ChannelError:
                came.drop()
                raise
            self._accept(header.priority, came)
        elif header.kind == Kind.RINGS:
            assert self._connection is not None
            if len(body) != GENERATION.size:
                references.drop(*fds)
                raise ChannelError(f"station {self.peer.id} sent rings in a wrong way")
            references.drop(*self._offered)
            self._offered = fds
            self.shared.spawn(self._attach_rings(self._connection, *GENERATION.unpack(body)), "rings")
        elif header.kind == Kind.RINGS_BROKEN:
            self._drop_rings()
        else:
            raise ChannelError(f"station {self.peer.id} sent a record of kind {header.kind} that does not belong here")

    def on_turn(self) -> None:
        """A batch from the socket was read: tell the sender, which waits."""
        self._tell()
        self._look_into_rings()  # they may have waited for what came

    def on_closed(self, reason: str) -> None:
        """The connection ended; what is in the rings was promised, and is read to the end."""
        log.debug("link from station %s ended: %s", self.peer.id, reason)
        self._connection = None
        if self._pump is not None:
            self._pump.drain()

    # -- frames ---------------------------------------------------------------------------------------------------

    def _accept(self, priority: int, came: _Came) -> None:
        """Take a frame if it is the next; let it wait if it is early; drop it if it was here before."""
        lane = self._lanes[priority]
        if came.sequence != lane.taken + 1:
            if came.sequence <= lane.taken or came.sequence in lane.early:
                came.flow.duplicates += 1
                came.drop()
                return
            if len(lane.early) >= MAX_EARLY:
                came.drop()
                raise ChannelError(f"station {self.peer.id} leaves out frame {lane.taken + 1}")
            lane.early[came.sequence] = came
            if self._gap_timer is None:
                self._watch_gaps()
            return
        self._take(lane, priority, came)
        while lane.early and (next_one := lane.early.pop(lane.taken + 1, None)) is not None:
            self._take(lane, priority, next_one)

    def _take(self, lane: _Lane, priority: int, came: _Came) -> None:
        lane.taken = came.sequence
        lane.held.append(came)
        if len(lane.held) == 1 and not lane.is_busy:
            self._deliver(lane, priority)

    def _deliver(self, lane: _Lane, priority: int) -> None:
        """Hand over what is held, as far as the recipient takes it."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        while lane.held and not lane.is_busy and not self._is_closed:
            came = lane.held[0]
            if came.fd is not None:
                lane.is_busy = True
                self.shared.spawn(self._read_reference(lane, priority, came), "a large frame")
                return
            asked_ns = time.monotonic_ns()
            took = self._ask(came, priority)
            if took is True:
                self._has_taken(lane, came, asked_ns)
            elif took is False:
                lane.timer = self.shared.loop.call_later(lane.pause_s, self._deliver_again, lane, priority)
                lane.pause_s = min(2 * lane.pause_s, LAST_ASK_S)
                return
            else:
                lane.is_busy = True
                self.shared.spawn(self._await(lane, priority, came, took), "a frame")
                return

    def _ask(self, came: _Came, priority: int) -> bool | Awaitable[bool]:
        try:
            return self.shared.on_frame(self.peer, came.frame, PRIORITY[priority])
        except Exception as error:  # noqa: BLE001 - of the recipient
            self._note_failure(error)
            return True

    async def _await(self, lane: _Lane, priority: int, came: _Came, took: Awaitable[bool]) -> None:
        try:
            did = await took
        except Exception as error:  # noqa: BLE001 - of the recipient
            self._note_failure(error)
            did = True
        lane.is_busy = False
        if did:
            self._has_taken(lane, came, time.monotonic_ns())
        self._deliver_again(lane, priority)

    def _note_failure(self, error: Exception) -> None:
        """The recipient raised: the frame is gone, since it would raise again. Said once, twice, four times, …"""
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            what = "a frame of station %s was lost: its recipient raised (%d so far)"
            log.error(what, self.peer.id, self._failures, exc_info=error)

    async def _read_reference(self, lane: _Lane, priority: int, came: _Came) -> None:
        fd, came.fd = came.fd, None
        assert fd is not None
        try:
            came.frame = await references.in_thread(references.read, fd, came.frame)
        except ChannelError as error:
            log.error("a frame of station %s was lost: %s", self.peer.id, error)
            came.flow.drops += 1
            lane.held.popleft()
            lane.done = came.sequence
        lane.is_busy = False
        self._deliver_again(lane, priority)

    def _has_taken(self, lane: _Lane, came: _Came, taken_ns: int) -> None:
        lane.held.popleft()
        lane.done = came.sequence
        lane.pause_s = ASK_AGAIN_S
        flow = came.flow
        flow.count(len(came.frame))
        flow.latency_ns.add(taken_ns - came.sent_ns)

    def _deliver_again(self, lane: _Lane, priority: int) -> None:
        lane.timer = None
        before = lane.done
        self._deliver(lane, priority)
        if lane.done != before or not lane.held:
            self._tell()
            self._look_into_rings()

    def _look_into_rings(self) -> None:
        if self._pump is not None:
            self._pump.soon()

    # -- what the sender is told ----------------------------------------------------------------------------------

    def _state(self) -> bytes:
        return STATE.pack(*(lane.taken for lane in self._lanes), *(lane.done for lane in self._lanes))

    def _tell(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._connection is not None:
            state = self._state()
            if state != self._told:
                self._told = state
                self._connection.send(Kind.ACK, state)

    # -- rings ----------------------------------------------------------------------------------------------------

    async def _attach_rings(self, connection: Connection, generation: int) -> None:
        why_not = await rings.load()
        offered, self._offered = self._offered, ()
        if why_not or connection is not self._connection or len(offered) == 0:
            references.drop(*offered)
            connection.send(Kind.RINGS_REFUSED, why_not.encode()[:200])
            return
        self._drop_rings()
        try:
            self._pump = Pump(self.shared, ReadingRings(offered, self._keys, generation), self)
        except ChannelError as error:
            connection.send(Kind.RINGS_REFUSED, str(error).encode()[:200])
            return
        connection.send(Kind.RINGS_READY, b"")
        self._pump.soon()

    def is_free(self, priority: int) -> bool:
        """Nothing of this priority waits for its recipient, or for a frame that is still on the socket."""
        lane = self._lanes[priority]
        return not lane.held and lane.from_ring <= lane.taken

    def on_ring_record(self, header: Header, body: bytes) -> None:
        """A frame out of a ring."""
        came = _Came(header.sequence, body, header.sent_ns, self._by_ring[header.priority])
        self._lanes[header.priority].from_ring = header.sequence
        self._accept(header.priority, came)

    def on_pumped(self, *, is_much: bool) -> None:
        """Its sender does not wait, unless the ring is full."""
        if is_much:
            self._tell()
        elif self._ack_timer is None:
            self._ack_timer = self.shared.loop.call_later(ACK_AFTER_S, self._tell)

    def on_rings_empty(self) -> None:
        """All that a sender who is gone had put into rings was read."""
        self._drop_rings()

    def on_rings_broken(self, reason: str) -> None:
        """Back to the socket: the sender sends again what it has no word about."""
        log.warning("rings from station %s broke: %s", self.peer.id, reason)
        self._drop_rings()
        self._tell()
        if self._connection is not None:
            self._connection.send(Kind.RINGS_BROKEN, reason.encode()[:200])

    def _watch_gaps(self) -> None:
        taken = [lane.taken for lane in self._lanes]
        self._gap_timer = self.shared.loop.call_later(GAP_S, self._look_for_gaps, taken)

    def _look_for_gaps(self, taken: list[int]) -> None:
        """Whether a priority with something early stands where it stood."""
        self._gap_timer = None
        if any(lane.early for lane in self._lanes):
            is_stuck = any(lane.early and lane.taken == then for lane, then in zip(self._lanes, taken, strict=True))
            if is_stuck and self._pump is not None:
                self.on_rings_broken("a record is missing")
            else:
                self._watch_gaps()

    def _drop_rings(self) -> None:
        if self._pump is not None:
            self._pump.close()
            self._pump = None
            for lane in self._lanes:
                lane.from_ring = 0

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the connection is gone, and everything that came is delivered."""
        return self._connection is None and self._pump is None and not any(lane.held for lane in self._lanes)

    def plain(self) -> dict[str, object]:
        """As data."""
        held = [sum(len(came.frame) for came in lane.held) for lane in self._lanes]
        return {
            "peer": self.peer.id,
            "direction": "received",
            "transport": "socket" if self._pump is None else "ring",
            "held": [len(lane.held) for lane in self._lanes],
            "fill_bytes": held,
            "fill_ratio": max(held) / self.shared.options.channel_size,
        }

    def close(self) -> None:
        """Let go of everything."""
        self._is_closed = True
        for timer in (self._ack_timer, self._gap_timer, *(lane.timer for lane in self._lanes)):
            if timer is not None:
                timer.cancel()
        self._drop_rings()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        references.drop(*self._offered)
        self._offered = ()
        for lane in self._lanes:
            for came in (*lane.held, *lane.early.values()):
                came.drop()
