"""What lies where in a ring, and what its numbers mean.  PURE

A ring is one piece of shared memory: a header, then `capacity` bytes (a power of two) that are mapped twice, one after
the other, so that a record which runs over the end goes on at the beginning and nobody has to cut it in two.

The writer has put bytes up to HEAD and the reader has taken those up to TAIL. Both only grow; the place of a position
is its rest by the capacity. Each record begins on a cache line of its own:

    0  u32 length of the payload, bytes      16  u64 when it was sent, ns of CLOCK_MONOTONIC
    4  u32 flags, 0 so far                   24  u64 checksum of payload and the fields before
    8  u64 sequence: the position at which the record begins, so that no stale or shifted record is ever taken
    32 payload, then nothing up to the next multiple of 64
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import ChannelError

MAGIC = int.from_bytes(b"SwarmRng", "little")
VERSION = 1

HEADER_BYTES = 65536
"""A multiple of every size of page in use. What is never touched takes no memory."""

SMALLEST_BYTES, LARGEST_BYTES = 65536, 1 << 32
"""Allowed capacities: a multiple of every size of page, and a length that fits in 32 bits."""

ALIGNMENT = 64
RECORD_HEADER_BYTES = 32

# The header. What different sides write is 128 bytes apart: cores fetch cache lines in pairs.
AT_MAGIC, AT_VERSION, AT_CAPACITY = 0, 8, 16
AT_WRITER = 128  # claim, PID namespace
AT_READER = 256
AT_HEAD = 384
AT_SENT, AT_SENT_BYTES, AT_REFUSED = 392, 400, 408  # beside HEAD: the writer owns this line anyway
AT_TAIL = 512
AT_RECEIVED, AT_RECEIVED_BYTES, AT_DAMAGED = 520, 528, 536
AT_READER_STATE = 640
AT_WRITER_STATE = 768
AT_LATENCIES = 1024

# Of the two words *_STATE, 32 bits each.
AWAKE, ON_FUTEX, ON_BELL = 0, 1, 2

STEPS = 8
"""Buckets per power of two in the histogram of latencies: none is wider than an eighth of what it counts."""

BUCKETS = 40 * STEPS
"""From 1 ns to 2⁴² ns, more than an hour; what took longer counts as that."""

HEADER_IN_USE_BYTES = AT_LATENCIES + 8 * BUCKETS

PID_BITS = 22
"""Of a claim: the PID (PID_MAX_LIMIT of Linux is 2²²), above it when the process started, in ticks since boot."""


def capacity_for(size_bytes: int) -> int:
    """The capacity of a ring that was asked for with `size_bytes`: the next power of two.

    >>> capacity_for(100_000)
    131072
    """
    if not 0 < size_bytes <= LARGEST_BYTES:
        raise ChannelError(f"a ring of {size_bytes} bytes: allowed are 1 to {LARGEST_BYTES}")
    power: int = 1 << (size_bytes - 1).bit_length()
    return max(SMALLEST_BYTES, power)


def largest_message(capacity: int) -> int:
    """Bytes of the largest payload that a ring of this capacity takes."""
    return min(capacity, (1 << 32) - ALIGNMENT) - RECORD_HEADER_BYTES


def check_header(header: bytes, size_bytes: int) -> int:
    """The capacity that the first bytes of a ring tell; ChannelError when `size_bytes` of memory are no such ring."""
    if len(header) < AT_CAPACITY + 8:
        raise ChannelError(f"this is no ring: it has {len(header)} bytes, a ring has more than {HEADER_BYTES}")
    fields: tuple[int, int, int] = struct.unpack_from("<QQQ", header)
    magic, version, capacity = fields
    if magic != MAGIC:
        raise ChannelError("this is no ring: it does not begin as one")
    if version != VERSION:
        raise ChannelError(f"the ring has layout {version}, here is layout {VERSION}: run the same swarm on both sides")
    if not SMALLEST_BYTES <= capacity <= LARGEST_BYTES or capacity & (capacity - 1):
        raise ChannelError(f"the ring is damaged: it says that it holds {capacity} bytes, which no ring does")
    if size_bytes != HEADER_BYTES + capacity:
        raise ChannelError(f"the ring is damaged: {size_bytes} bytes, where it tells of {HEADER_BYTES + capacity}")
    return capacity


def first_header(capacity: int) -> bytes:
    """How the header of a new ring begins; all that follows is zero."""
    return struct.pack("<QQQ", MAGIC, VERSION, capacity)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a ring at one moment, as plain numbers."""

    capacity: int
    head: int
    tail: int
    sent: int
    sent_bytes: int
    refused: int
    received: int
    received_bytes: int
    damaged: int
    latencies: Sequence[int]
    """How many messages took how long, by bucket."""

    @classmethod
    def of(cls, header: bytes) -> Header:
        (capacity,) = struct.unpack_from("<Q", header, AT_CAPACITY)
        head, sent, sent_bytes, refused = struct.unpack_from("<4Q", header, AT_HEAD)
        tail, received, received_bytes, damaged = struct.unpack_from("<4Q", header, AT_TAIL)
        latencies = struct.unpack_from(f"<{BUCKETS}Q", header, AT_LATENCIES)
        return cls(capacity, head, tail, sent, sent_bytes, refused, received, received_bytes, damaged, latencies)

    def is_sound(self) -> bool:
        """Whether these can be the positions of a ring."""
        return 0 <= self.tail <= self.head <= self.tail + self.capacity and not (self.tail | self.head) % ALIGNMENT

    def statistics(self) -> dict[str, int | None]:
        """Counts since the ring was made, bytes in it now, and latency from `send` to `receive` in ns."""
        return {
            "messages": self.received,
            "bytes": self.received_bytes,
            "sent": self.sent,
            "sent_bytes": self.sent_bytes,
            "drops": self.refused,
            "damaged": self.damaged,
            "fill_bytes": min(max(0, self.head - self.tail), self.capacity),
            "capacity_bytes": self.capacity,
            "latency_p50_ns": quantile_ns(self.latencies, 0.5),
            "latency_p99_ns": quantile_ns(self.latencies, 0.99),
        }


def bucket_of(ns: int) -> int:
    """The bucket that counts a latency: the power of two and the next three bits.

    >>> [bucket_of(ns) for ns in (0, 7, 8, 15, 16, 18)]
    [0, 7, 8, 15, 16, 17]
    """
    if ns < STEPS:
        return max(0, ns)
    power = ns.bit_length() - 1
    return min(BUCKETS - 1, (power - 2) * STEPS + (ns >> (power - 3)) - STEPS)


def lower_bound_ns(bucket: int) -> int:
    """The shortest latency that a bucket counts.

    >>> all(bucket_of(lower_bound_ns(b)) == b for b in range(BUCKETS))
    True
    """
    if bucket < STEPS:
        return bucket
    power, step = divmod(bucket, STEPS)
    return (STEPS + step) << (power - 1)


def quantile_ns(latencies: Sequence[int], share: float) -> int | None:
    """Below this lie `share` of all latencies, in ns, true to an eighth; None before the first."""
    rank = share * sum(latencies)
    for bucket, count in enumerate(latencies):
        rank -= count
        if count and rank <= 0:
            return (lower_bound_ns(bucket) + lower_bound_ns(bucket + 1)) // 2
    return None


def claim(pid: int, started_ticks: int) -> int:
    """One word that names a process for good, a PID that is used again included."""
    return started_ticks << PID_BITS | pid


def claimed_by(word: int) -> tuple[int, int]:
    """(PID, start in ticks since boot) of a claim."""
    return word & ((1 << PID_BITS) - 1), word >> PID_BITS
