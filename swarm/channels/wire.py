"""What travels on a link between two stations: records with a header, and how they are read back.  PURE

The same record, header and body, is written to a Unix socket or into a ring. Sequence numbers count per priority,
across both: whatever way a record came, the receiver puts it in order, and drops what it has already.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from swarm.channels.messages import MAX_BYTES, Priority
from swarm.errors import ChannelError

HEADER = struct.Struct("<IBBHQQ")
"""Bytes of the body, kind, priority, epoch of the key, sequence number, monotonic clock of the host in ns."""
MAX_BODY = MAX_BYTES + 64
"""A message, and the tag of its seal."""
STATE = struct.Struct("<8Q")
"""Per priority the last number that the station has taken, then per priority the last that its recipient has."""
PRIORITIES = len(Priority)


class Kind(IntEnum):
    """What a record is."""

    FRAME = 1
    REFERENCE = 2
    """A frame in a memory file that comes with the record."""
    WELCOME = 3
    """Opens a link: whether the session is known, and `STATE`."""
    ACK = 4
    RINGS = 5
    """Here are rings, one per priority, and a bell."""
    RINGS_READY = 6
    RINGS_REFUSED = 7
    """With the reason."""
    RINGS_BROKEN = 8
    """From either side, with the reason: back to the socket."""


_KINDS = frozenset(map(int, Kind))


class Header(NamedTuple):
    """Of one record."""

    size: int
    kind: int
    priority: int
    epoch: int
    sequence: int
    sent_ns: int


def read_header(data: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """The header at `offset`.

    Raises
    ------
    ChannelError
        It is none: what comes after it can't be read either.
    """
    header = Header._make(HEADER.unpack_from(data, offset))
    if header.kind not in _KINDS or header.priority >= PRIORITIES or header.size > MAX_BODY:
        raise ChannelError(f"bytes on a channel are no record: {reprlib.repr(bytes(data[offset : offset + 24]))}")
    return header


def read_record(record: bytes) -> tuple[Header, bytes]:
    """Header and body of exactly one record.

    Raises
    ------
    ChannelError
        It is none.
    """
    if len(record) < HEADER.size:
        raise ChannelError(f"a record has {len(record)} bytes, at least {HEADER.size} are needed")
    header = read_header(record)
    if len(record) != HEADER.size + header.size:
        raise ChannelError(f"a record has {len(record)} bytes, its header says {HEADER.size + header.size}")
    return header, record[HEADER.size :]


class Records:
    """Records out of a stream of bytes, however it is cut.

    >>> records = Records()
    >>> record = HEADER.pack(2, Kind.FRAME, Priority.LOW, 0, 7, 0) + b"hi"
    >>> list(records.feed(record[:9])), [body for _, body in records.feed(record[9:])]
    ([], [b'hi'])
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Header, bytes]]:
        """Add what has come, and go through all records that are complete.

        Raises
        ------
        ChannelError
            What has come is no record. Nothing can be read after that.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < HEADER.size or len(self._rest) < HEADER.size + read_header(self._rest).size:
                return  # a large record in many parts is put together once
            data = bytes(self._rest)
            self._rest.clear()
        at = 0
        while len(data) - at >= HEADER.size:
            header = read_header(data, at)
            end = at + HEADER.size + header.size
            if end > len(data):
                break
            body = data[at + HEADER.size : end]
            at = end
            yield header, body
        self._rest += data[at:]
