"""The mailbox of an agent: what waits to be read, and what is read next.  PURE

The most urgent message goes first, the oldest of those. So that the last ones do not starve, a message that has been
passed over `PATIENCE` times is next: under a steady stream of urgent ones, the others get every `PATIENCE` + 1st turn.
"""

from __future__ import annotations

from collections import deque

from swarm.channels.messages import Priority

PATIENCE = 16
OVERHEAD_BYTES = 64
"""What a waiting frame takes beside its own bytes; so that a flood of empty ones is bounded too."""


class Turns:
    """Which of several priorities is next.

    >>> turns = Turns(patience=2)
    >>> [turns.next_of([True, False, False, True]) for _ in range(4)]
    [0, 0, 3, 0]
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._passed_over = [0] * len(Priority)

    def next_of(self, waiting: list[bool]) -> int | None:
        """The priority to serve now, of those where something waits; None when nothing does."""
        passed_over = self._passed_over
        chosen = None
        for priority, something in enumerate(waiting):
            if not something:
                passed_over[priority] = 0
            elif chosen is None or (passed_over[priority] >= self._patience > passed_over[chosen]):
                chosen = priority
        if chosen is None:
            return None
        for priority in range(chosen + 1, len(waiting)):
            if waiting[priority]:
                passed_over[priority] += 1
        passed_over[chosen] = 0
        return chosen


class Mailbox:
    """Encoded messages that wait for one agent.

    Parameters
    ----------
    capacity_bytes
        How much may wait at each priority; so that a flood of small talk does not keep out what is urgent.

    >>> box = Mailbox(1000)
    >>> box.put(b"later", Priority.LOW), box.put(b"now", Priority.URGENT)
    (True, True)
    >>> box.take(), box.take(), box.take()
    (b'now', b'later', None)
    """

    def __init__(self, capacity_bytes: int, patience: int = PATIENCE) -> None:
        self.capacity_bytes = capacity_bytes
        self._waiting: list[deque[bytes]] = [deque() for _ in Priority]
        self._bytes = [0] * len(Priority)
        self._turns = Turns(patience)

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    @property
    def fill_ratio(self) -> float:
        """Of the fullest priority, 0 to 1."""
        return max(self._bytes) / self.capacity_bytes

    def fill_at(self, priority: Priority) -> float:
        """Of one priority, 0 to 1; more with a message that is larger than the mailbox."""
        return self._bytes[priority] / self.capacity_bytes

    def put(self, frame: bytes, priority: Priority) -> bool:
        """Add a message, unless there is no room. An empty mailbox takes a message of any size."""
        size = len(frame) + OVERHEAD_BYTES
        if self._waiting[priority] and self._bytes[priority] + size > self.capacity_bytes:
            return False
        self._waiting[priority].append(frame)
        self._bytes[priority] += size
        return True

    def take(self) -> bytes | None:
        """Remove and return what is to be read next; None when nothing waits."""
        priority = self._turns.next_of([bool(waiting) for waiting in self._waiting])
        if priority is None:
            return None
        frame = self._waiting[priority].popleft()
        self._bytes[priority] -= len(frame) + OVERHEAD_BYTES
        return frame
