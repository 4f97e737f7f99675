"""Rates and shares out of counters that only grow.  PURE."""

from __future__ import annotations


class Slope:
    """How much one counter grew per growth of another: bytes per second, busy ticks per tick.

    There is no slope at the first reading, nor when either counter went backwards (a wrap, a reset, a disk that was
    unplugged, a clock that was set back), nor when the second one stood still. It starts anew from there.

    >>> rate = Slope()
    >>> [rate.since_last(count, now_s) for count, now_s in [(100, 1.0), (160, 3.0), (10, 4.0), (20, 5.0)]]
    [None, 30.0, None, 10.0]
    """

    __slots__ = ("_along", "_count", "_scale")

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self._count: float | None = None
        self._along = 0.0

    def since_last(self, count: float, along: float) -> float | None:
        """`scale` x growth of `count` / growth of `along` since the reading before; None when there is none."""
        before, self._count = self._count, count
        step, self._along = along - self._along, along
        if before is None or count < before or step <= 0:
            return None
        return self._scale * (count - before) / step
