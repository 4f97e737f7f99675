"""How long data takes from host to host: a latency and a bandwidth for each pair, drawn to those of all pairs.  PURE

Two hosts that have never talked are as all hosts are; a host and itself are a class of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from math import exp, log

START_LATENCY_S = 0.005
"""Of one fetch between two workers of Dask: request, answer, and what the two event loops do meanwhile."""
SLOWEST_BYTES_PER_S, FASTEST_BYTES_PER_S = 1e3, 1e12
LONGEST_S = 3600.0
"""A fetch that took longer is a clock's doing."""
_MEMORY = 32
_PRIOR = 3.0
"""Fetches that the mean of all pairs counts for in the mean of one."""
_MOST_PAIRS = 10_000


class _Mean:
    """Of logarithms: exponentially weighted, and drawn to another one's."""

    __slots__ = ("_count", "_mean", "_prior", "value")

    def __init__(self, prior: _Mean | None = None) -> None:
        self._prior = prior
        self._count = 0
        self._mean = 0.0
        self.value: float | None = None
        """None: nothing is known."""

    def add(self, value: float) -> None:
        self._count = min(self._count + 1, _MEMORY)
        self._mean += (value - self._mean) / self._count
        prior = None if self._prior is None else self._prior.value
        if prior is None:
            self.value = self._mean
        else:
            self.value = (_PRIOR * prior + self._count * self._mean) / (_PRIOR + self._count)


class _Link:
    __slots__ = ("bandwidth", "latency")

    def __init__(self, prior: _Link | None = None) -> None:
        self.latency: _Mean = _Mean(None if prior is None else prior.latency)
        self.bandwidth: _Mean = _Mean(None if prior is None else prior.bandwidth)


class Links:
    """Learns from fetches; every method is O(1)."""

    def __init__(self) -> None:
        self._classes = {True: _Link(), False: _Link()}
        """Whether it is within one host → what all such links have in common."""
        self._pairs: OrderedDict[tuple[str, str], _Link] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def saw_latency(self, source: str, target: str, seconds: float) -> None:
        """A fetch of next to nothing from one host to another took so long."""
        if 0.0 < seconds <= LONGEST_S:
            of_class, of_pair = self._links(source, target)
            of_class.latency.add(log(seconds))
            of_pair.latency.add(log(seconds))

    def saw_bandwidth(self, source: str, target: str, bytes_per_s: float) -> None:
        """Bytes came at this rate, latency aside."""
        if 0.0 < bytes_per_s < float("inf"):
            rate = log(min(max(bytes_per_s, SLOWEST_BYTES_PER_S), FASTEST_BYTES_PER_S))
            of_class, of_pair = self._links(source, target)
            of_class.bandwidth.add(rate)
            of_pair.bandwidth.add(rate)

    def latency_s(self, source: str, target: str) -> float:
        link = self._pairs.get((source, target))
        if link is not None and (value := link.latency.value) is not None:
            return exp(value)
        value = self._classes[source == target].latency.value
        return START_LATENCY_S if value is None else exp(value)

    def bandwidth(self, source: str, target: str) -> float | None:
        """Bytes per second; None: nothing is known of this pair nor of any like it."""
        link = self._pairs.get((source, target))
        if link is not None and (value := link.bandwidth.value) is not None:
            return exp(value)
        value = self._classes[source == target].bandwidth.value
        return None if value is None else exp(value)

    def _links(self, source: str, target: str) -> tuple[_Link, _Link]:
        of_class = self._classes[source == target]
        of_pair = self._pairs.get((source, target))
        if of_pair is None:
            of_pair = self._pairs[source, target] = _Link(of_class)
            if len(self._pairs) > _MOST_PAIRS:
                self._pairs.popitem(last=False)
        return of_class, of_pair
