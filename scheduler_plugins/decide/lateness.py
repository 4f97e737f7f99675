"""Workers of which one hears late: their tasks end, and nobody is told.  PURE

A worker whose event loop is blocked now and then, or whose connection is slow, computes as fast as any other; but its
results can't be reported or fetched until the loop turns again. What it is given takes that much longer, whatever the
task.
"""

from __future__ import annotations

from statistics import median
from typing import Any

Worker = Any
"""Hashable."""

RISE, FALL = 0.7, 0.1
"""Weight of the last task in the moving average of a worker's lateness, where it was later and where it was not: who
waits for results waits for the latest."""
LEAST_S = 0.3
"""Lateness beyond that of the median worker from which on it counts: clocks differ, messages go out in batches, and who
sends large inputs to others is busy for a moment."""
FADE_S = 5.0
"""What is not confirmed is halved after so long: a worker that is given nothing can't show that it is well again."""


class Lateness:
    """How late each worker's reports come, beyond what is usual."""

    def __init__(self) -> None:
        self.excess_s: dict[Worker, float] = {}
        """Worker → seconds by which it is later than most; those that are not late are not in here."""
        self._late_s: dict[Worker, float] = {}
        self._faded_s = 0.0
        self._reported: set[Worker] = set()

    def reported(self, worker: Worker, late_s: float) -> None:
        """A task has ended there, and `late_s` later one hears of it."""
        known_s = self._late_s.get(worker, 0.0)
        off_s = max(late_s, 0.0) - known_s
        self._late_s[worker] = known_s + (RISE if off_s > 0.0 else FALL) * off_s
        self._reported.add(worker)

    def left(self, worker: Worker) -> None:
        self._late_s.pop(worker, None)
        self.excess_s.pop(worker, None)

    def look(self, now_s: float) -> None:
        """Compare the workers. O(workers)."""
        if now_s - self._faded_s > FADE_S:
            self._faded_s = now_s
            for worker in self._late_s:
                if worker not in self._reported:
                    self._late_s[worker] /= 2.0
            self._reported.clear()
        if not self._late_s:
            return
        usual_s = median(self._late_s.values())
        self.excess_s = {
            worker: late_s - usual_s for worker, late_s in self._late_s.items() if late_s - usual_s > LEAST_S
        }
