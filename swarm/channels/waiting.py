"""How the two ends of a ring agree, and wait for each other; compiled. `sending` and `receiving` build on it.

Each end has a block of its own memory (the offsets `OWN_*`), which no other process can reach: what it needs to know
about the ring, its own position, and the last position of the other end that it has seen. From shared memory an end
believes nothing that it has not checked, so that a peer that scribbles can spoil messages but not this process.

**The GIL is the lock.** A kernel holds it but while it waits, so threads of a process may share an end.

**No wake-up is lost** (Dekker). The waiter writes "I sleep", then looks for news once more; the other side writes the
news, then looks whether somebody sleeps. Each has a sequentially consistent fence between its write and its look, so
at least one of the two sees what the other wrote. If it is the waiter, it does not sleep; if it is the other, it takes
the "I sleep" back and wakes whoever sleeps on that word. Should the first come between the look of the waiter and its
call of futex, the kernel finds the word changed and does not put it to sleep. Only a process that is killed between
its news and its look lets the other sleep on, and for that one nobody sleeps longer than `NAP_NS` before it looks.

**Nothing is torn.** A record counts when HEAD has passed it, and HEAD is stored (release) when all of it is written;
so a writer that is killed at any instruction has sent a message or has not.

**Compiled kernels on disk.** numba takes them as fresh while the content of their own file is the same, whatever has
become of the modules that they are made of. So each file names those by their digest (`MADE_OF`), and a test sees to it
that the digest is right: who changes `layout` changes the files of all kernels, here and after every upgrade.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from swarm.channels.atomics import (
    compare_exchange,
    exchange_state,
    fence,
    futex_wait,
    futex_wake,
    load,
    load_acquire,
    load_state,
    monotonic_ns,
    relax,
    store,
)
from swarm.channels.layout import ALIGNMENT, ON_BELL, ON_FUTEX, RECORD_HEADER_BYTES
from swarm.channels.objects import release_gil, take_gil

MADE_OF = "71352d488b62955e"

# The block of an end, in bytes: 64-bit words.
OWN_RING, OWN_CAPACITY, OWN_POSITION, OWN_SEEN = 0, 8, 16, 24
OWN_CLOSED = 32  # one of OPEN, CLOSED, FORKED
OWN_INSIDE = 40  # threads that wait here without the GIL; the memory must stay until they have left
OWN_SPIN_NS, OWN_LONGEST_SPIN_NS, OWN_SKIPPED = 48, 56, 64
OWN_BELL = 72  # the other end sleeps on its bell, and nobody has rung it yet
OWN_BYTES = 128

OPEN, CLOSED, FORKED = 0, 1, 2

# What a kernel says other than a message. Python's small integers, the cheapest to make.
SENT, SENT_RING, FULL, LOOK, IS_CLOSED, BROKEN, TOO_LARGE = 0, 1, 2, 3, 4, 5, 6

NAP_NS = 200_000_000
"""So often a waiting thread returns to Python, which handles signals and looks whether the peer still lives."""

PROBES = 16
"""One wait of so many spins although spinning has not paid of late."""

INT = numba.int64

njit: Any = numba.njit


@njit
def own(me: int, offset: int) -> int:
    return int(np.int64(load(me + offset)))


@njit
def write(address: int, value: int) -> None:
    store(address, np.uint64(value))


@njit
def add(address: int, value: int) -> None:
    store(address, load(address) + np.uint64(value))


@njit
def record_bytes(length: int) -> int:
    return (RECORD_HEADER_BYTES + length + ALIGNMENT - 1) & -ALIGNMENT


@njit
def _spin(me: int, news: int, wanted: int, until_ns: int) -> bool:
    """Look for a while before going to sleep; that while grows when it pays and shrinks when it does not."""
    allowed = own(me, OWN_SPIN_NS)
    if allowed == 0:
        longest = own(me, OWN_LONGEST_SPIN_NS)
        add(me + OWN_SKIPPED, 1)
        if longest == 0 or own(me, OWN_SKIPPED) % PROBES:
            return False
        allowed = longest
    end = min(monotonic_ns() + allowed, until_ns)
    while load_acquire(news) < wanted:
        relax()
        if monotonic_ns() >= end:
            write(me + OWN_SPIN_NS, allowed // 2 if allowed > 2_000 else 0)
            return False
    write(me + OWN_SPIN_NS, min(2 * allowed, own(me, OWN_LONGEST_SPIN_NS)))
    return True


@njit
def wait(me: int, news: int, wanted: int, state: int, until_ns: int) -> None:
    """Give the GIL away until the position at `news` is at least `wanted`, or for another reason: look again."""
    add(me + OWN_INSIDE, 1)
    thread = release_gil()
    until_ns = min(until_ns, monotonic_ns() + NAP_NS)
    if not _spin(me, news, wanted, until_ns):
        exchange_state(state, ON_FUTEX)
        fence()
        if load_acquire(news) < wanted and load_acquire(me + OWN_CLOSED) == OPEN:
            futex_wait(state, ON_FUTEX, until_ns)
        # The word is left as it is: another thread of this process may sleep on it.
    take_gil(thread)
    add(me + OWN_INSIDE, -1)


@njit
def wake(state: int) -> bool:
    """Wake whoever sleeps on this word; True if it sleeps on its bell, which is for the caller to ring."""
    fence()
    if load_state(state) == 0:
        return False
    was = exchange_state(state, 0)
    if was == ON_FUTEX:
        futex_wake(state)
    return was == ON_BELL


@njit([INT(INT, INT)], cache=True)
def wake_own(me: int, state: int) -> int:
    """Wake the threads that wait at this end, whose waiting word is at the offset `state`."""
    fence()
    word = own(me, OWN_RING) + state
    if exchange_state(word, 0) == ON_FUTEX:
        futex_wake(word)
    return SENT


@njit([INT(INT, INT, INT)], cache=True)
def claim(address: int, expected: int, value: int) -> int:
    """Set the word at `address` if it is as expected; returns what was there."""
    return compare_exchange(address, expected, value)
