"""The writing end of a ring, compiled. How the two ends agree: see `waiting`."""

from __future__ import annotations

import numpy as np

from swarm.channels.atomics import exchange_state, fence, load_acquire, monotonic_ns, store, store_release
from swarm.channels.checksum import copy_and_hash, seed_of
from swarm.channels.layout import (
    AT_HEAD,
    AT_READER_STATE,
    AT_REFUSED,
    AT_SENT,
    AT_SENT_BYTES,
    AT_TAIL,
    AT_WRITER_STATE,
    HEADER_BYTES,
    ON_BELL,
    RECORD_HEADER_BYTES,
)
from swarm.channels.objects import bytes_size, bytes_start, given, item, new_int, python_object
from swarm.channels.waiting import (
    BROKEN,
    FULL,
    INT,
    IS_CLOSED,
    LOOK,
    OPEN,
    OWN_BELL,
    OWN_CAPACITY,
    OWN_CLOSED,
    OWN_POSITION,
    OWN_RING,
    OWN_SEEN,
    SENT,
    SENT_RING,
    TOO_LARGE,
    add,
    njit,
    own,
    record_bytes,
    wait,
    wake,
    write,
)

MADE_OF = "8578d5885d42c243"


@njit
def _room(me: int, ring: int, size: int) -> int:
    """SENT when a record of `size` bytes fits, FULL, or BROKEN when the reader claims what can't be."""
    head, capacity = own(me, OWN_POSITION), own(me, OWN_CAPACITY)
    if head + size - own(me, OWN_SEEN) <= capacity:
        return SENT
    tail = load_acquire(ring + AT_TAIL)
    if not own(me, OWN_SEEN) <= tail <= head:
        return BROKEN
    write(me + OWN_SEEN, tail)
    return SENT if head + size - tail <= capacity else FULL


@njit
def _put(me: int, ring: int, start: int, length: int) -> None:
    """Write a record where there is room, and let it count."""
    head = own(me, OWN_POSITION)
    record = ring + HEADER_BYTES + (head & (own(me, OWN_CAPACITY) - 1))
    now = monotonic_ns()
    seed = seed_of(np.uint64(length), np.uint64(head), np.uint64(now))
    write(record, length)
    write(record + 8, head)
    write(record + 16, now)
    store(record + 24, copy_and_hash(record + RECORD_HEADER_BYTES, start, length, seed))
    head += record_bytes(length)
    write(me + OWN_POSITION, head)
    store_release(ring + AT_HEAD, head)
    add(ring + AT_SENT, 1)
    add(ring + AT_SENT_BYTES, length)


@njit
def _send(me: int, start: int, length: int, until_ns: int) -> int:
    """Put one message, waking nobody; SENT, FULL, LOOK, IS_CLOSED, BROKEN or TOO_LARGE."""
    size = record_bytes(length)
    if size > own(me, OWN_CAPACITY):
        return TOO_LARGE
    waited = False
    while True:
        if own(me, OWN_CLOSED) != OPEN:
            return IS_CLOSED
        ring = own(me, OWN_RING)
        room = _room(me, ring, size)
        if room == SENT:
            _put(me, ring, start, length)
            return SENT
        if room == BROKEN:
            return BROKEN
        if until_ns == 0 or monotonic_ns() >= until_ns:
            add(ring + AT_REFUSED, 1)
            return FULL
        if waited:
            return LOOK
        wanted = own(me, OWN_POSITION) + size - own(me, OWN_CAPACITY)
        wait(me, ring + AT_TAIL, wanted, ring + AT_WRITER_STATE, until_ns)
        waited = True


@njit([INT(INT, INT, INT)], cache=True)
def send(me: int, message: int, until_ns: int) -> int:
    """Send the `bytes` object at the address `message`; wait for room until `until_ns`, 0: not at all."""
    code = _send(me, bytes_start(message), bytes_size(message), until_ns)
    if code == SENT and wake(own(me, OWN_RING) + AT_READER_STATE):
        return SENT_RING
    return code


@njit([python_object(INT, INT, INT, INT, INT)], cache=True)
def send_many(me: int, messages: int, first: int, last: int, until_ns: int) -> int:
    """Send the `bytes` objects of a list from `first` to before `last`; returns 8 × the number sent + a code."""
    sent, code, ring_bell = 0, SENT, False
    for i in range(first, last):
        message = item(messages, i)
        length = bytes_size(message)
        if length < 0:
            wake(own(me, OWN_RING) + AT_READER_STATE)
            return given(0)
        code = _send(me, bytes_start(message), length, 0)
        if code == FULL and until_ns > 0:
            # The reader may sleep and not know yet what it has got.
            ring_bell |= wake(own(me, OWN_RING) + AT_READER_STATE)
            code = _send(me, bytes_start(message), length, until_ns)
        if code != SENT:
            break
        sent += 1
    if sent:
        ring_bell |= wake(own(me, OWN_RING) + AT_READER_STATE)
    if ring_bell:
        write(me + OWN_BELL, 1)
    return given(new_int(8 * sent + code))


@njit([INT(INT, INT)], cache=True)
def rest_writer(me: int, length: int) -> int:
    """Sleep on the bell until a message of `length` bytes may fit: SENT; FULL when it fits already."""
    if own(me, OWN_CLOSED) != OPEN:
        return IS_CLOSED
    ring, size = own(me, OWN_RING), record_bytes(length)
    if size > own(me, OWN_CAPACITY):
        return TOO_LARGE
    exchange_state(ring + AT_WRITER_STATE, ON_BELL)
    fence()
    room = _room(me, ring, size)
    if room == FULL:
        return SENT
    exchange_state(ring + AT_WRITER_STATE, 0)
    return BROKEN if room == BROKEN else FULL
