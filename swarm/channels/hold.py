"""What a process has of one end of a ring: the claim in shared memory, and a block of memory of its own."""

from __future__ import annotations

import ctypes
import os
import time
import weakref
from dataclasses import dataclass

from swarm.channels import layout, shm, waiting
from swarm.errors import ChannelError


@dataclass(frozen=True, slots=True)
class Side:
    """Where the two ends differ."""

    name: str
    writes: bool
    claim: int
    peer: int
    state: int


WRITER = Side("writer", True, layout.AT_WRITER, layout.AT_READER, layout.AT_WRITER_STATE)
READER = Side("reader", False, layout.AT_READER, layout.AT_WRITER, layout.AT_READER_STATE)


class Hold:
    """What this process has of one end: the claim in the ring, and the block of own memory that the kernels use."""

    def __init__(self, base: int, capacity: int, side: Side, spin_us: float) -> None:
        self.base, self.side = base, side
        self._words = memoryview(bytearray(waiting.OWN_BYTES)).cast("q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._words))
        self._claim = self._take()
        self._set(waiting.OWN_RING, base)
        self._set(waiting.OWN_CAPACITY, capacity)
        self._set(waiting.OWN_LONGEST_SPIN_NS, int(spin_us * 1000))
        header = layout.Header.of(ctypes.string_at(base, layout.HEADER_IN_USE_BYTES))
        if not header.is_sound():
            self.close()
            raise ChannelError(f"the ring is damaged: it has been read up to {header.tail}, written to {header.head}")
        self._set(waiting.OWN_POSITION, header.head if side.writes else header.tail)
        self._set(waiting.OWN_SEEN, header.tail)
        waiting.wake_own(self.address, side.state)  # who held this end before us may have died in its sleep
        _holds.add(self)

    def _take(self) -> int:
        ours, at = shm.own_claim(), self.base + self.side.claim
        holder = 0
        while holder != (holder := waiting.claim(at, holder, ours)):
            if self._lives(holder, at):
                pid, _ = layout.claimed_by(holder)
                whose = "this process" if pid == os.getpid() else f"process {pid}"
                raise ChannelError(
                    f"the ring has a {self.side.name} already, {whose}: one end has one {self.side.name}"
                )
        ctypes.c_int64.from_address(at + 8).value = shm.own_pid_namespace()
        return ours

    def _set(self, offset: int, value: int) -> None:
        self._words[offset // 8] = value

    def take_bell(self) -> bool:
        if not self._words[waiting.OWN_BELL // 8]:
            return False
        self._set(waiting.OWN_BELL, 0)
        return True

    def peer_lives(self) -> bool:
        """Whether the other end's process lives, as far as we can see: in our PID namespace, and since it came."""
        at = self.base + self.side.peer
        claim = _word(at)
        return claim == 0 or self._lives(claim, at)

    @staticmethod
    def _lives(claim: int, at: int) -> bool:
        """Of a process in another PID namespace we can't tell; its socket can."""
        return _word(at + 8) not in (0, shm.own_pid_namespace()) or shm.lives(claim)

    def peer_pid(self) -> int:
        return layout.claimed_by(_word(self.base + self.side.peer))[0]

    def refusal(self) -> str:
        if self._words[waiting.OWN_CLOSED // 8] == waiting.FORKED:
            return "this ring belongs to the process that forked this one: open a ring of your own"
        return "the ring is closed"

    def forget(self) -> None:
        """In a forked child: the end is the parent's."""
        self._set(waiting.OWN_CLOSED, waiting.FORKED)
        self._set(waiting.OWN_INSIDE, 0)

    def close(self) -> None:
        """Send away the threads that wait here, and give the claim back."""
        if self._words[waiting.OWN_CLOSED // 8] != waiting.OPEN:
            return
        self._set(waiting.OWN_CLOSED, waiting.CLOSED)
        while self._words[waiting.OWN_INSIDE // 8]:
            waiting.wake_own(self.address, self.side.state)
            time.sleep(0.0001)  # they need the GIL to leave
        waiting.claim(self.base + self.side.claim, self._claim, 0)


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


_holds: weakref.WeakSet[Hold] = weakref.WeakSet()


def _forget_all() -> None:
    for hold in list(_holds):
        hold.forget()


os.register_at_fork(after_in_child=_forget_all)
