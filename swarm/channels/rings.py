"""The shared memory of one link: a ring for each priority, and a bell for a reader who sleeps.

`swarm.channels.ring` is imported when a link needs it and not before: numba takes seconds and 100 MB.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.channels.security import TAG_BYTES, Keys
from swarm.channels.wire import HEADER, PRIORITIES, Header, Kind, read_record
from swarm.errors import ChannelError

if TYPE_CHECKING:
    from swarm.channels.ring import Ring

SHARE = 4
"""A frame takes at most this part of a ring, so that one does not wait for all others to be read."""

RUNG_BITS = 64 // PRIORITIES
"""Of the bell's counter for each priority, which is rung once at most before its reader looks."""

_loading = threading.Lock()
_why_not: str | None = None
"""Empty when rings work in this process, None when nobody has tried."""


async def load() -> str:
    """Import and warm up what rings need, in a thread; empty, or the reason why there can't be any."""
    if _why_not is not None:
        return _why_not
    return await asyncio.get_running_loop().run_in_executor(None, _load)


def _load() -> str:
    global _why_not  # noqa: PLW0603 - of the process
    with _loading:
        if _why_not is None:
            try:
                from swarm.channels import ring

                ring.warm_up()
                _why_not = "" if hasattr(os, "eventfd") else "this system has no eventfd"
            except (ImportError, OSError, ChannelError) as error:
                _why_not = f"{type(error).__name__}: {error}"
    return _why_not


class WritingRings:
    """The writer's end. `load` must have succeeded.

    Raises
    ------
    ChannelError
        There is no memory, or no file descriptor, left.
    """

    def __init__(self, size_bytes: int, keys: Keys | None, generation: int) -> None:
        from swarm.channels.ring import Ring, Sent

        self._no, self._ring_bell = Sent.NO, Sent.RING
        self._rings: list[Ring] = []
        self._bell = -1
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            for _ in range(PRIORITIES):
                self._rings.append(Ring.create(size_bytes))
            self._writers = [ring.writer() for ring in self._rings]
        except OSError as error:
            self.close()
            raise ChannelError(f"no rings of {size_bytes} bytes ({error.strerror})") from None
        except ChannelError:
            self.close()
            raise
        self._sealers = [keys.sealer(_lane(p, generation)) for p in range(PRIORITIES)] if keys else None
        self.largest_frame = size_bytes // SHARE - HEADER.size - TAG_BYTES - 64

    def duplicates(self) -> tuple[int, ...]:
        """File descriptors to send away: the rings', then the bell's."""
        return tuple(os.dup(fd) for fd in (*(ring.fd for ring in self._rings), self._bell))

    def put(self, priority: int, sequence: int, sent_ns: int, frame: bytes) -> bool:
        """Write a frame; False when the ring is full.

        Raises
        ------
        ChannelError
            The ring is broken, or its reader has ended.
        """
        size = len(frame)
        if self._sealers is None:
            record = HEADER.pack(size, Kind.FRAME, priority, 0, sequence, sent_ns) + frame
            outcome = self._writers[priority].try_send(record)
        else:
            sealer = self._sealers[priority]
            epoch = sealer.current_epoch()
            header = HEADER.pack(size + TAG_BYTES, Kind.FRAME, priority, epoch, sequence, sent_ns)
            outcome = self._writers[priority].try_send(header + sealer.seal(header, frame))
            if outcome is self._no:
                sealer.take_back()
        if outcome is self._ring_bell:
            os.eventfd_write(self._bell, 1 << (RUNG_BITS * priority))
        return outcome is not self._no

    def close(self) -> None:
        """Let go of the memory; it lives on as long as the reader holds it."""
        for ring in self._rings:
            ring.close()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1


class ReadingRings:
    """The reader's end; owns `fds` from the first moment.

    Raises
    ------
    ChannelError
        They are no rings and a bell.
    """

    def __init__(self, fds: Sequence[int], keys: Keys | None, generation: int) -> None:
        from swarm.channels.ring import Ring

        self._rings: list[Ring] = []
        self.bell = fds[PRIORITIES]
        try:
            for fd in fds[:PRIORITIES]:
                self._rings.append(Ring.attach(fd))
            self._readers = [ring.reader() for ring in self._rings]
            os.set_blocking(self.bell, False)
            os.eventfd_write(self.bell, 0)
        except (OSError, ChannelError) as error:
            for fd in fds[len(self._rings) : PRIORITIES]:
                os.close(fd)
            self.close()
            raise ChannelError(f"rings can't be used: {error}") from None
        self._openers = [keys.opener(_lane(p, generation)) for p in range(PRIORITIES)] if keys else None
        self.size_bytes = min(int(ring.statistics()["capacity_bytes"] or 0) for ring in self._rings)

    def take(self, priority: int) -> tuple[Header, bytes] | None:
        """The next record of this priority; None when there is none.

        Raises
        ------
        ChannelError
            The ring is broken, or what is in it is no record.
        """
        record = self._readers[priority].try_receive()
        if record is None:
            return None
        header, body = read_record(record)
        if header.kind != Kind.FRAME or header.priority != priority:
            raise ChannelError(f"a ring of priority {priority} has a record of kind {header.kind}, {header.priority}")
        if self._openers is not None:
            body = self._openers[priority].open(record[: HEADER.size], body, header.epoch)
        return header, body

    def rest(self, priority: int) -> bool:
        """Ask for the bell at the next record; False when there is one now."""
        return bool(self._readers[priority].rest())

    def rang(self) -> list[int]:
        """Silence the bell; returns for which priorities it rang."""
        try:
            rung = os.eventfd_read(self.bell)
        except BlockingIOError:
            return []
        return [priority for priority, mask in enumerate(_MASKS) if rung & mask]

    def close(self) -> None:
        """Let go of the memory and the bell."""
        for ring in self._rings:
            ring.close()
        os.close(self.bell)


_MASKS = [((1 << RUNG_BITS) - 1) << (RUNG_BITS * priority) for priority in range(PRIORITIES)]


def _lane(priority: int, generation: int) -> str:
    """Each set of rings has keys of its own, also within one session."""
    return f"ring {priority} of {generation}"
