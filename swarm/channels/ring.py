"""A ring in shared memory: messages from one process to another in about a microsecond.

>>> ring = Ring.create(1 << 20)
>>> writer, reader = ring.writer(), ring.reader()  # in a second process: Ring.attach(fd).reader()
>>> writer.send(b"How many roads?")
<Sent.YES: 1>
>>> reader.receive(timeout_s=1.0)
b'How many roads?'
>>> ring.close()

Importing this module loads the compiled kernels; the first time on a machine they are compiled, which takes seconds.
"""

from __future__ import annotations

import ctypes
import enum
import os
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from swarm.channels import layout, receiving, sending, shm, waiting
from swarm.channels.hold import READER, WRITER, Hold, Side
from swarm.errors import ChannelError, ChannelFullError, MessageTooLargeError, PeerLostError

SPIN_US = 50.0
"""The longest that a waiting thread spins before it sleeps: about what it costs to be woken, which is the best that
one can do without knowing the future (Karlin et al., Competitive Randomized Algorithms for Non-Uniform Problems, 1990).
It adapts to what has paid of late, see `ring_waiting._spin`."""

MANY_CORES = (os.cpu_count() or 1) > 1
"""With one core nobody can answer while we spin. Of the host, not those that we may use: the peer may use others."""

LOOK_S = waiting.NAP_NS / 1e9
FOR_EVER_S = 1e9


class Sent(enum.Enum):
    """What became of a message."""

    NO = 0
    """The ring is full."""
    YES = 1
    RING = 2
    """Sent, and the reader sleeps on its bell: ring it."""


OUTCOME = {waiting.SENT: Sent.YES, waiting.SENT_RING: Sent.RING, waiting.FULL: Sent.NO}


def warm_up() -> float:
    """Load the kernels, or compile them, and send a message through a ring; returns how many seconds that took."""
    began_s = time.perf_counter()
    with Ring.create(layout.SMALLEST_BYTES) as ring:
        writer, reader = ring.writer(), ring.reader()
        writer.send(b"warm")
        assert reader.receive(1.0) == b"warm"
    return time.perf_counter() - began_s


class Ring:
    """One piece of shared memory with a writer and a reader, in one process or two."""

    def __init__(self, fd: int, capacity: int) -> None:
        self.fd = fd
        self.capacity = capacity
        self._base = shm.map_twice(fd, capacity)
        self._holds: list[Hold] = []
        self._release = weakref.finalize(self, _let_go, self._holds, fd, self._base, capacity)
        self._release.atexit = False  # whoever ends takes nothing along: the kernel cleans up, and the peer looks

    @classmethod
    def create(cls, size_bytes: int) -> Ring:
        """A new ring that holds at least `size_bytes` (rounded up to a power of two), headers of messages included."""
        return cls._of(shm.create(layout.capacity_for(size_bytes)))

    @classmethod
    def attach(cls, fd: int) -> Ring:
        """The ring behind a descriptor that another process sent; the descriptor is the ring's from now on.

        Raises ChannelError, and leaves the descriptor alone, when it is no ring, not sealed, or of another version.
        """
        return cls(fd, shm.capacity_of(fd))

    @classmethod
    def _of(cls, fd: int) -> Ring:
        try:
            return cls.attach(fd)
        except ChannelError:
            os.close(fd)
            raise

    def writer(self, *, spin_us: float = SPIN_US) -> RingWriter:
        """The end that sends; ChannelError when there is one already. `spin_us`: see `SPIN_US`, 0 never spins."""
        return RingWriter(self, spin_us)

    def reader(self, *, spin_us: float = SPIN_US) -> RingReader:
        """The end that receives; ChannelError when there is one already. `spin_us`: see `SPIN_US`, 0 never spins."""
        return RingReader(self, spin_us)

    @property
    def closed(self) -> bool:
        return not self._release.alive

    @property
    def largest_message_bytes(self) -> int:
        return layout.largest_message(self.capacity)

    def statistics(self) -> dict[str, int | None]:
        """Counts of both ends since the ring was made, see `layout.Header.statistics`."""
        if self.closed:
            raise ChannelError("the ring is closed")
        return layout.Header.of(ctypes.string_at(self._base, layout.HEADER_IN_USE_BYTES)).statistics()

    def close(self) -> None:
        """Give memory and descriptor back; threads that wait at an end get ChannelError. Twice does no harm."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _let_go(holds: list[Hold], fd: int, base: int, capacity: int) -> None:
    for hold in holds:
        hold.close()
    shm.unmap(base, capacity)
    os.close(fd)


class _End:
    def __init__(self, ring: Ring, side: Side, spin_us: float) -> None:
        if ring.closed:
            raise ChannelError("the ring is closed")
        if not 0 <= spin_us < 1e6:
            raise ChannelError(f"spin_us={spin_us}: allowed are 0 to a million")
        self._ring = ring
        self._hold = Hold(ring._base, ring.capacity, side, spin_us if MANY_CORES else 0.0)
        ring._holds.append(self._hold)
        self._own = self._hold.address
        self._look_again_s = 0.0

    def bell_due(self) -> bool:
        """Whether the other end slept on its bell and what we did last should wake it: ring it. Says so once."""
        return self._hold.take_bell()

    def close(self) -> None:
        """Give this end back, so that another may take it. The ring stays. Twice does no harm."""
        self._hold.close()
        if self._hold in self._ring._holds:
            self._ring._holds.remove(self._hold)

    def _peer_is_lost(self) -> bool:
        """Looked up at most each `LOOK_S`, for it takes tens of microseconds."""
        now_s = time.monotonic()
        if now_s < self._look_again_s:
            return False
        self._look_again_s = now_s + LOOK_S
        return not self._hold.peer_lives()

    def _lost(self, what: str) -> PeerLostError:
        return PeerLostError(f"process {self._hold.peer_pid()}, the {what} of this ring, has ended")

    def _fail(self, code: int) -> NoReturn:
        if code == waiting.IS_CLOSED:
            raise ChannelError(self._hold.refusal())
        raise ChannelError("the ring is damaged beyond repair: its positions contradict each other; open a new one")


class RingWriter(_End):
    """The end that sends. Threads of the process may share it."""

    def __init__(self, ring: Ring, spin_us: float) -> None:
        super().__init__(ring, WRITER, spin_us)

    def send(self, data: bytes | bytearray | memoryview, timeout_s: float = 0.0) -> Sent:
        """Send bytes; wait up to `timeout_s` for room, without the GIL. Returns `Sent.YES` or `Sent.RING`.

        Raises ChannelFullError without room, PeerLostError when the reader that should make room has ended,
        MessageTooLargeError when it will never fit, ChannelError when the ring is closed or damaged.
        """
        if data.__class__ is not bytes:
            data = bytes(memoryview(data))
        until_ns = _until_ns(timeout_s)
        while True:
            code = sending.send(self._own, id(data), until_ns)
            if code <= waiting.SENT_RING:
                return OUTCOME[code]
            if code in (waiting.LOOK, waiting.FULL):
                if self._peer_is_lost():
                    raise self._lost("reader")
                if code == waiting.LOOK:
                    continue
            self._refuse(code, len(data), timeout_s)

    def try_send(self, data: bytes | bytearray | memoryview) -> Sent:
        """Send bytes without waiting; `Sent.NO` when there is no room. Raises as `send`."""
        if data.__class__ is not bytes:
            data = bytes(memoryview(data))
        code = sending.send(self._own, id(data), 0)
        if code > waiting.FULL:
            self._refuse(code, len(data), 0.0)
        return OUTCOME[code]

    def send_many(self, messages: Sequence[bytes], timeout_s: float = 0.0) -> int:
        """Send messages in order, with one call for many; returns how many, fewer than all when the time was up.

        Afterwards `bell_due()` says whether the reader's bell is to be rung. Raises as `send`, but for a full ring.
        """
        listed = list(messages)
        until_ns = _until_ns(timeout_s)
        sent, code = 0, waiting.LOOK
        while code == waiting.LOOK:
            more, code = divmod(sending.send_many(self._own, id(listed), sent, len(listed), until_ns), 8)
            sent += more
            if code == waiting.LOOK and self._peer_is_lost():
                raise self._lost("reader")
        if code > waiting.FULL:
            self._refuse(code, len(listed[sent]), timeout_s)
        return sent

    def rest(self, length: int) -> bool:
        """Sleep on the bell until there may be room for `length` bytes: the reader's `bell_due()` will say so.

        False: there is room already.
        """
        code = sending.rest_writer(self._own, length)
        if code > waiting.FULL:
            self._refuse(code, length, 0.0)
        return bool(code == waiting.SENT)

    def _refuse(self, code: int, length: int, timeout_s: float) -> NoReturn:
        if code == waiting.FULL:
            raise ChannelFullError(f"the receiver made no room for {length} bytes within {timeout_s:g} s")
        if code == waiting.TOO_LARGE:
            most = self._ring.largest_message_bytes
            raise MessageTooLargeError(f"a message of {length} bytes: this ring takes at most {most}")
        self._fail(code)


class RingReader(_End):
    """The end that receives. Threads of the process may share it, each message goes to one of them."""

    def __init__(self, ring: Ring, spin_us: float) -> None:
        super().__init__(ring, READER, spin_us)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next message, waiting up to `timeout_s` without the GIL; None when there came none.

        Raises PeerLostError when all has been read and the writer has ended, ChannelError when the ring is closed
        or damaged. A message that is damaged is counted and skipped.
        """
        until_ns = _until_ns(timeout_s)
        while True:
            got: Any = receiving.receive(self._own, until_ns)
            if got.__class__ is bytes:
                return got
            if got is not None and got != waiting.LOOK:
                self._fail(got)
            if until_ns and self._peer_is_lost():
                if (last := self.try_receive()) is None:  # sent before it ended, after we had looked
                    raise self._lost("writer")
                return last
            if got is None:
                return None

    def try_receive(self) -> bytes | None:
        """The next message, or None when there is none. Raises as `receive`, but for a lost peer."""
        got: Any = receiving.receive(self._own, 0)
        if got is not None and got.__class__ is not bytes:
            self._fail(got)
        return got

    def receive_many(self, timeout_s: float = 0.0, most: int = 1024) -> list[bytes]:
        """All messages that are there, at most so many; waits up to `timeout_s` for the first. Raises as `receive`."""
        got: Any = receiving.receive_many(self._own, most)
        if not got and timeout_s > 0 and (first := self.receive(timeout_s)) is not None:
            got = [first]
            if most > 1:
                got += receiving.receive_many(self._own, most - 1)
        if got.__class__ is not list:
            self._fail(got)
        return got

    def rest(self) -> bool:
        """Sleep on the bell: the writer will get `Sent.RING`. False: there is something to read already."""
        code = receiving.rest_reader(self._own)
        if code > waiting.FULL:
            self._fail(code)
        return bool(code == waiting.SENT)


def _until_ns(timeout_s: float) -> int:
    """The end of a wait in ns of CLOCK_MONOTONIC; 0 when there is to be none."""
    if timeout_s <= 0:
        return 0
    return time.monotonic_ns() + int(min(timeout_s, FOR_EVER_S) * 1e9)
