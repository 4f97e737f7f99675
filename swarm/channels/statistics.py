"""How much goes over channels, how fast, and what was lost: per peer, direction, priority and transport.  PURE"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_STEPS = 3
"""Bits of a number below its first: 8 buckets per power of two, each 6 % to either side."""


class Histogram:
    """Counts of numbers in buckets that grow with them, as in HdrHistogram; a quantile is within 6 % of the true one.

    >>> latency = Histogram()
    >>> for us in range(1, 101):
    ...     latency.add(us * 1000)
    >>> round(latency.quantile(0.5) / 1000), round(latency.quantile(0.99) / 1000)
    (51, 102)
    """

    __slots__ = ("_counts", "n")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.n = 0

    def add(self, value: int) -> None:
        """Count a number >= 0; a negative one (a clock that was set) counts as zero."""
        value = max(value, 0)
        shift = value.bit_length() - 1 - _STEPS
        bucket = value if shift <= 0 else (shift << _STEPS) + (value >> shift)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.n += 1

    def merge(self, other: Histogram) -> None:
        """Add all that the other has counted."""
        for bucket, n in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + n
        self.n += other.n

    def quantile(self, q: float) -> float | None:
        """The number below which a share `q` (0 to 1) of all lies; None of nothing."""
        wanted, seen = q * self.n, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return _middle(bucket)
        return None


def _middle(bucket: int) -> float:
    shift = (bucket >> _STEPS) - 1
    if shift <= 0:
        return float(bucket)
    return ((bucket - (shift << _STEPS)) + 0.5) * (1 << shift)


@dataclass(slots=True)
class Flow:
    """Of one direction, priority and transport, with one peer."""

    messages: int = 0
    bytes: int = 0
    drops: int = 0
    """Given up: no room before the deadline, the peer lost, or damaged."""
    duplicates: int = 0
    """Came twice after a link was healed, and were delivered once."""
    latency_ns: Histogram = field(default_factory=Histogram)
    """From the sender's `send` to the recipient's mailbox, on the host's monotonic clock; of what was received."""

    def count(self, size: int) -> None:
        """One more message of `size` bytes."""
        self.messages += 1
        self.bytes += size

    def plain(self) -> dict[str, Any]:
        """As data."""
        p50, p99 = self.latency_ns.quantile(0.5), self.latency_ns.quantile(0.99)
        return {
            "messages": self.messages,
            "bytes": self.bytes,
            "drops": self.drops,
            "duplicates": self.duplicates,
            "p50_us": None if p50 is None else p50 / 1000,
            "p99_us": None if p99 is None else p99 / 1000,
        }


class Statistics:
    """All flows of a station.

    >>> statistics = Statistics()
    >>> statistics.flow("a1", "sent", 2, "socket").count(100)
    >>> [row["bytes"] for row in statistics.rows()]
    [100]
    """

    MAX_PEERS = 256
    """The flows of a peer that went away are kept, until there are more; then those of the oldest are summed up."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, str, int, str], Flow] = {}

    def flow(self, peer: str, direction: str, priority: int, transport: str) -> Flow:
        """The one to count in; the caller may keep it."""
        key = (peer, direction, priority, transport)
        found = self._flows.get(key)
        if found is None:
            found = self._flows[key] = Flow()
        return found

    def forget(self, peer: str) -> None:
        """Sum up what there is of a peer that went away under the name `gone`, if there are many peers."""
        if len({key[0] for key in self._flows}) <= self.MAX_PEERS:
            return
        for key in [key for key in self._flows if key[0] == peer]:
            gone, into = self._flows.pop(key), self.flow("gone", *key[1:])
            into.messages += gone.messages
            into.bytes += gone.bytes
            into.drops += gone.drops
            into.duplicates += gone.duplicates
            into.latency_ns.merge(gone.latency_ns)

    def rows(self) -> list[dict[str, Any]]:
        """As data, one row per flow in which something went."""
        return [
            {"peer": peer, "direction": direction, "priority": priority, "transport": transport, **flow.plain()}
            for (peer, direction, priority, transport), flow in sorted(self._flows.items())
            if flow.messages or flow.drops
        ]
