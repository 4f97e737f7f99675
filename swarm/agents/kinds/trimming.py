"""Gives memory back that the C library keeps after tasks have freed it, where that is worth the time it takes.

Source: malloc_trim(3); Dask's own advice on "unmanaged memory" (distributed.dask.org, Worker Memory Management).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_BYTES = 128 << 20
LEAST_OF_LIMIT = 0.1
"""Unmanaged memory, as a share of the worker's limit, below which it is left alone."""
WORTH = 0.03
"""Share of the resident memory that must come back for it to be tried again soon."""
PAUSE_S, LONGEST_PAUSE_S = 10.0, 3600.0


@dataclass(frozen=True)
class Trimmed:
    """What one call has done."""

    before_bytes: int
    after_bytes: int
    seconds: float

    @property
    def was_worth_it(self) -> bool:
        return self.before_bytes - self.after_bytes >= WORTH * self.before_bytes


class Trimmer:
    """Decides when, calls `malloc_trim`, and measures what it brought.

    Parameters
    ----------
    resident
        Resident memory of this process now, bytes.
    trim
        What gives memory back.

    Examples
    --------
    >>> trimmer = Trimmer(iter((1000 << 20, 400 << 20)).__next__, lambda: None)
    >>> trimmer.is_due(1000 << 20, 100 << 20, None, now_s=0.0)
    True
    >>> trimmer.run(now_s=0.0).was_worth_it, trimmer.is_due(1000 << 20, 100 << 20, None, now_s=5.0)
    (True, False)
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], object]) -> None:
        self._resident = resident
        self._trim = trim
        self._pause_s = PAUSE_S
        self._next_s = float("-inf")
        self.runs = 0
        self.given_back_bytes = 0
        self.seconds = 0.0
        self.last: Trimmed | None = None

    def is_due(self, resident_bytes: int, managed_bytes: int, limit_bytes: int | None, now_s: float) -> bool:
        least = max(LEAST_BYTES, LEAST_OF_LIMIT * (limit_bytes or 0))
        return now_s >= self._next_s and resident_bytes - managed_bytes >= least

    def run(self, now_s: float) -> Trimmed:
        """Blocks for as long as it takes, some 10 ms for a GB; lets other threads run."""
        before, began_s = self._resident(), time.perf_counter()
        self._trim()
        self.last = done = Trimmed(before, self._resident(), time.perf_counter() - began_s)
        self.runs += 1
        self.seconds += done.seconds
        self.given_back_bytes += max(0, done.before_bytes - done.after_bytes)
        self._pause_s = PAUSE_S if done.was_worth_it else min(LONGEST_PAUSE_S, 2 * self._pause_s)
        self._next_s = now_s + self._pause_s
        return done


def malloc_trim() -> Callable[[], object] | None:
    """glibc's; None where the C library has none (musl, macOS)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return lambda: trim(ctypes.c_size_t(0))
