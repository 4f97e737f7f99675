"""What an agent does right now and has done so far, written by whoever runs it and readable at any time.

Plain 8-byte words in memory: for an agent in a process of its own the memory is shared, so nothing needs to be sent
while all is well, and its host knows what it was doing when it died. There is one writer. A reader may see one word
of a change and not yet the next; `turn` is written so that this never looks like a turn that takes for ever.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import tempfile
import time
from enum import IntEnum

WORDS = 256
SIZE_BYTES = WORDS * 8
_DOING, _SINCE, _GOOD, _CPU, _CYCLES, _BEGUN, _HANDLED, _FAILED, _BUSY = range(9)
_HISTOGRAM = 64
BUCKETS = WORDS - _HISTOGRAM
PER_OCTAVE = 4
"""Buckets of the histogram for each doubling; the first ends at a microsecond, so the last one is beyond 86 days."""


class Doing(IntEnum):
    """What an agent is busy with."""

    NOTHING = 0
    SETUP = 1
    CYCLE = 2
    MESSAGE = 3
    OPTIMIZING = 4
    TEARDOWN = 5


class Vitals:
    """The words of one life of an agent.

    Parameters
    ----------
    fd
        Of the shared memory (`shared_memory`); None for memory of this process.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._map = None if fd is None else mmap.mmap(fd, SIZE_BYTES)
        self._words = memoryview(bytearray(SIZE_BYTES) if self._map is None else self._map)
        self._counts, self._times_s = self._words.cast("Q"), self._words.cast("d")

    def close(self) -> None:
        """Forget the shared memory; what was read last stays readable."""
        if self._map is not None:
            kept = memoryview(bytearray(self._words))
            for view in (self._counts, self._times_s, self._words):
                view.release()
            self._words, self._counts, self._times_s = kept, kept.cast("Q"), kept.cast("d")
            self._map.close()
            self._map = None

    def turn(self, doing: Doing) -> _Turn:
        """The agent is busy inside the block; when it raises, what it was doing stays to be seen."""
        return _Turn(self, doing)

    def _begin(self, doing: Doing) -> float:
        self._times_s[_SINCE] = began_s = time.monotonic()  # before the next, see above
        self._counts[_DOING] = doing
        return began_s

    def _end(self, doing: Doing, began_s: float) -> None:
        self._counts[_DOING] = Doing.NOTHING
        ended_s = time.monotonic()
        self._times_s[_BUSY] += ended_s - began_s
        if doing not in (Doing.SETUP, Doing.TEARDOWN):  # to begin and to end is not its work
            self._times_s[_GOOD] = ended_s

    def count_cycle(self, duration_s: float) -> None:
        """One more cycle, that took so long."""
        self._counts[_CYCLES] += 1
        self._counts[_HISTOGRAM + _bucket(duration_s)] += 1

    def begin_message(self) -> None:
        """From here on a message is not to be handled again, whatever happens."""
        self._counts[_BEGUN] += 1

    def count_message(self, *, failed: bool) -> None:
        """One more message was handled, or could not be."""
        self._counts[_FAILED if failed else _HANDLED] += 1

    def note_cpu(self, cpu_s: float) -> None:
        """CPU seconds that this life has taken so far."""
        self._times_s[_CPU] = cpu_s

    @property
    def doing(self) -> Doing:
        try:
            return Doing(self._counts[_DOING])
        except ValueError:  # the agent's process may write what it likes
            return Doing.NOTHING

    @property
    def messages_begun(self) -> int:
        return self._counts[_BEGUN]

    @property
    def messages_done(self) -> int:
        """How many it is through with, for good or ill."""
        return self._counts[_HANDLED] + self._counts[_FAILED]

    def busy_s(self, now_s: float) -> float:
        """Seconds in which it did something, with what it does now."""
        under_way_s = now_s - self.since_s if self.doing is not Doing.NOTHING else 0.0
        return self._times_s[_BUSY] + max(under_way_s, 0.0)

    @property
    def since_s(self) -> float:
        """When it began to do so (`time.monotonic`)."""
        return self._times_s[_SINCE]

    @property
    def good_at_s(self) -> float:
        """When it last finished some work (`time.monotonic`); 0 if it never has."""
        return self._times_s[_GOOD]


class _Turn:
    """A class, and no generator, since there is one for each message."""

    __slots__ = ("_began_s", "_doing", "_vitals")

    def __init__(self, vitals: Vitals, doing: Doing) -> None:
        self._vitals, self._doing = vitals, doing

    def __enter__(self) -> None:
        self._began_s = self._vitals._begin(self._doing)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._vitals._end(self._doing, self._began_s)


class Record:
    """What all lives of an agent add up to."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.busy_s = 0.0
        self.cycles = 0
        self.handled = 0
        self.failed = 0
        self._histogram = [0] * BUCKETS

    def plus(self, vitals: Vitals | None) -> Record:
        """The sum with one life more."""
        total = Record()
        total.cpu_s, total.cycles, total.handled, total.failed = self.cpu_s, self.cycles, self.handled, self.failed
        total.busy_s = self.busy_s
        total._histogram = list(self._histogram)
        if vitals is not None:
            words = vitals._counts.tolist()
            total.cpu_s += sane_s(vitals._times_s[_CPU])
            total.busy_s += sane_s(vitals.busy_s(time.monotonic()))
            total.cycles += words[_CYCLES] & _SANE
            total.handled += words[_HANDLED] & _SANE
            total.failed += words[_FAILED] & _SANE
            total._histogram = [a + b for a, b in zip(total._histogram, words[_HISTOGRAM:], strict=True)]
        return total

    def cycle_ms(self, quantile: float) -> float | None:
        """Upper end of the bucket (19 % wide) in which this quantile of the cycles is; None when there were none."""
        wanted = quantile * sum(self._histogram)
        seen = 0
        for bucket, count in enumerate(self._histogram):
            seen += count
            if count and seen >= wanted:
                return float(f"{2 ** (bucket / PER_OCTAVE) / 1000:.3g}")
        return None


_SANE = (1 << 48) - 1
"""An agent's process may write what it likes; with this, sums of it still fit into any message and any chart."""


def sane_s(seconds: float) -> float:
    """Seconds that an agent's process may have written, or 0."""
    return seconds if 0 <= seconds <= _SANE else 0.0  # a NaN is not


def _bucket(duration_s: float) -> int:
    """In which bucket it counts.

    >>> _bucket(0.0), _bucket(1e-6), _bucket(2e-6), _bucket(1e9)
    (0, 0, 4, 191)
    """
    microseconds = duration_s * 1e6
    return 0 if microseconds <= 1 else min(math.ceil(PER_OCTAVE * math.log2(microseconds)), BUCKETS - 1)


def shared_memory() -> int:
    """A file descriptor of memory for `Vitals`, without a name; whoever has it open shares it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("swarm-vitals", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SIZE_BYTES)
        # Were the agent's process to shorten it, to read it here would be a SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SIZE_BYTES)
        return os.dup(file.fileno())
