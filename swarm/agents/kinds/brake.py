"""When a worker should take no new tasks for a moment, since its memory will be full in seconds.  PURE

Dask pauses a worker at 80 % of its memory, and kills it at 95 %; what fills a gigabyte in a second has passed both
before the tasks that run are done. So the brake looks at where the memory is going, and presses earlier. What a known
function takes is the business of the scheduler's admission; this is for what nobody has seen before.
"""

from __future__ import annotations

from collections import deque
from itertools import combinations
from statistics import median
from typing import Literal

WINDOW_S = 3.0
LEAST = 4
"""Samples of the window."""
AGREE_RATIO = 0.8
"""Of all pairs of samples, how many must show growth."""
SOON_S = 3.0
"""Time left until the worker would pause, from which on it counts."""
LEAST_RATIO = 0.5
"""Of the memory limit; below, there is room for what nobody can foresee."""
MOST_HELD_S, REST_S = 5.0, 5.0
"""A growth that goes on though no task begins is not the tasks' doing; then it is up to Dask for a while."""

Move = Literal["press", "release"]


class Brake:
    """Looks at the memory of one worker, a few times a second.

    >>> brake = Brake()
    >>> [brake.look(0.5 * n, used_bytes=(5 + n) * 10**8, limit_bytes=2 * 10**9, pause_ratio=0.8) for n in range(8)][-1]
    'press'
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._pressed_at_s: float | None = None
        self._rests_until_s = 0.0
        self.left_s: float | None = None
        """Until the worker pauses, if it goes on like this."""
        self.presses = 0

    @property
    def is_pressed(self) -> bool:
        return self._pressed_at_s is not None

    def look(self, at_s: float, used_bytes: int, limit_bytes: int, pause_ratio: float) -> Move | None:
        """What to do now; None: nothing new."""
        samples = self._samples
        samples.append((at_s, used_bytes))
        while samples[0][0] < at_s - WINDOW_S:
            samples.popleft()
        self.left_s = self._time_left_s(pause_ratio * limit_bytes)
        if self._pressed_at_s is not None:
            held_s = at_s - self._pressed_at_s
            if held_s >= MOST_HELD_S or self.left_s is None or self.left_s > 2.0 * SOON_S:
                self._pressed_at_s = None
                self._rests_until_s = at_s + (REST_S if held_s >= MOST_HELD_S else 0.0)
                return "release"
            return None
        is_soon = self.left_s is not None and self.left_s <= SOON_S and used_bytes >= LEAST_RATIO * limit_bytes
        if is_soon and at_s >= self._rests_until_s and used_bytes < pause_ratio * limit_bytes:
            self._pressed_at_s = at_s
            self.presses += 1
            return "press"
        return None

    def _time_left_s(self, pause_bytes: float) -> float | None:
        """By the median of the slopes between all pairs (Sen 1968, as in `scheduler_plugins.decide.forecast`)."""
        if len(self._samples) < LEAST:
            return None
        slopes = [(b - a) / (tb - ta) for (ta, a), (tb, b) in combinations(self._samples, 2) if tb > ta]
        if not slopes or sum(slope > 0.0 for slope in slopes) < AGREE_RATIO * len(slopes):
            return None
        return max(pause_bytes - self._samples[-1][1], 0.0) / median(slopes)
