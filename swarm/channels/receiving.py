"""The reading end of a ring, compiled. How the two ends agree: see `waiting`."""

from __future__ import annotations

import numpy as np

from swarm.channels.atomics import exchange_state, fence, leading_zeros, load, load_acquire, monotonic_ns, store_release
from swarm.channels.checksum import copy_and_hash, seed_of
from swarm.channels.layout import (
    ALIGNMENT,
    AT_DAMAGED,
    AT_HEAD,
    AT_LATENCIES,
    AT_READER_STATE,
    AT_RECEIVED,
    AT_RECEIVED_BYTES,
    AT_TAIL,
    AT_WRITER_STATE,
    BUCKETS,
    HEADER_BYTES,
    ON_BELL,
    RECORD_HEADER_BYTES,
    STEPS,
)
from swarm.channels.objects import (
    append,
    bytes_start,
    drop,
    given,
    new_bytes,
    new_int,
    new_list,
    new_none,
    python_object,
)
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
def _count(ring: int, length: int, taken_ns: int) -> None:
    add(ring + AT_RECEIVED, 1)
    add(ring + AT_RECEIVED_BYTES, length)
    bucket = max(0, taken_ns)
    if bucket >= STEPS:
        power = 63 - leading_zeros(bucket)
        bucket = min(BUCKETS - 1, (power - 2) * STEPS + (bucket >> (power - 3)) - STEPS)
    add(ring + AT_LATENCIES + 8 * bucket, 1)


@njit
def _come(me: int, ring: int) -> int:
    """SENT when there are bytes to read, FULL when there are none, BROKEN when the writer claims what can't be."""
    tail = own(me, OWN_POSITION)
    if own(me, OWN_SEEN) > tail:
        return SENT
    head = load_acquire(ring + AT_HEAD)
    if not tail <= head <= tail + own(me, OWN_CAPACITY) or head & (ALIGNMENT - 1):
        return BROKEN
    write(me + OWN_SEEN, head)
    return SENT if head > tail else FULL


@njit
def _take(me: int, ring: int) -> int:
    """The next message as a new `bytes`, -1 when there is none that is whole, or 0 when there is no memory.

    What is not whole is counted, once for each stretch of it, and the next record is searched from line to line.
    """
    tail, head, capacity = own(me, OWN_POSITION), own(me, OWN_SEEN), own(me, OWN_CAPACITY)
    damaged = False
    while tail < head:
        record = ring + HEADER_BYTES + (tail & (capacity - 1))
        # Atomic, so that what was checked is what is used, whatever happens to the memory in between.
        size_and_flags, sequence = load_acquire(record), load_acquire(record + 8)
        length = size_and_flags & 0xFFFFFFFF
        end = tail + record_bytes(length)
        if sequence == tail and end <= head:
            sent_ns, checksum = load_acquire(record + 16), load(record + 24)
            message = new_bytes(length)
            if message == 0:
                return 0
            seed = seed_of(np.uint64(size_and_flags), np.uint64(sequence), np.uint64(sent_ns))
            if copy_and_hash(bytes_start(message), record + RECORD_HEADER_BYTES, length, seed) == checksum:
                if damaged:
                    add(ring + AT_DAMAGED, 1)
                write(me + OWN_POSITION, end)
                _count(ring, length, monotonic_ns() - sent_ns)
                return message
            drop(message)
        damaged = True
        tail += ALIGNMENT
    if damaged:
        add(ring + AT_DAMAGED, 1)
    write(me + OWN_POSITION, tail)
    return -1


@njit
def _free(me: int, ring: int) -> None:
    """Give what was read back to the writer."""
    store_release(ring + AT_TAIL, own(me, OWN_POSITION))
    if wake(ring + AT_WRITER_STATE):
        write(me + OWN_BELL, 1)


@njit([python_object(INT, INT)], cache=True)
def receive(me: int, until_ns: int) -> int:
    """The next message, waiting until `until_ns` (0: not at all); None without one; LOOK, IS_CLOSED or BROKEN."""
    waited = False
    while True:
        if own(me, OWN_CLOSED) != OPEN:
            return given(new_int(IS_CLOSED))
        ring = own(me, OWN_RING)
        come = _come(me, ring)
        if come == SENT:
            message = _take(me, ring)
            _free(me, ring)
            if message >= 0:
                return given(message)
        elif come == BROKEN:
            return given(new_int(BROKEN))
        elif until_ns == 0 or monotonic_ns() >= until_ns:
            return given(new_none())
        elif waited:
            return given(new_int(LOOK))
        else:
            wait(me, ring + AT_HEAD, own(me, OWN_POSITION) + 1, ring + AT_READER_STATE, until_ns)
            waited = True


@njit([python_object(INT, INT)], cache=True)
def receive_many(me: int, most: int) -> int:
    """A list of the messages that are there, at most so many; IS_CLOSED or BROKEN."""
    if own(me, OWN_CLOSED) != OPEN:
        return given(new_int(IS_CLOSED))
    ring = own(me, OWN_RING)
    found = new_list()
    if found == 0:
        return given(0)
    count, freed = 0, own(me, OWN_POSITION)
    while count < most:
        come = _come(me, ring)
        if come == BROKEN and count == 0:
            drop(found)
            return given(new_int(BROKEN))
        if come != SENT:
            break
        message = _take(me, ring)
        failed = message == 0
        if message > 0:
            failed = append(found, message) < 0
            drop(message)
        if failed:
            _free(me, ring)
            drop(found)
            return given(0)
        if message > 0:
            count += 1
        if own(me, OWN_POSITION) - freed >= own(me, OWN_CAPACITY) // 8:
            _free(me, ring)  # the writer need not wait for all of it
            freed = own(me, OWN_POSITION)
    _free(me, ring)
    return given(found)


@njit([INT(INT)], cache=True)
def rest_reader(me: int) -> int:
    """Sleep on the bell: SENT; FULL when there is something to read already."""
    if own(me, OWN_CLOSED) != OPEN:
        return IS_CLOSED
    ring = own(me, OWN_RING)
    exchange_state(ring + AT_READER_STATE, ON_BELL)
    fence()
    come = _come(me, ring)
    if come == FULL:
        return SENT
    exchange_state(ring + AT_READER_STATE, 0)
    return BROKEN if come == BROKEN else FULL
