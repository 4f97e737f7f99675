"""How many agents a group should have, by how busy they are.  PURE

More as soon as they have been busy for `UP_AFTER_S`, fewer when for `DOWN_AFTER_S` one fewer would have been enough.
The two limits lie so far apart that removing an agent never makes the rest busy enough to call it back: a steady load
leads to a steady number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BUSY = 0.75
"""Load of an agent above which its group needs more: queues grow fast from there on (M/M/1: 3 waiting at 0.75)."""
AIM = 0.5
"""Load per agent that a change leads to."""
UP_AFTER_S = 2.0
DOWN_AFTER_S = 20.0
COOL_DOWN_S = 5.0
"""After a change, until its effect can be seen: an agent that starts takes up to two seconds."""


class Autoscaler:
    """The target of one group.

    >>> scaler = Autoscaler()
    >>> [scaler.look([1.0], 1, minimum=1, maximum=4, now_s=t) for t in (0.0, 1.0, 2.0, 3.0)]
    [1, 1, 2, 1]
    """

    def __init__(self) -> None:
        self._busy_since_s: float | None = None
        self._idle_since_s: float | None = None
        self._changed_at_s = -math.inf

    def look(self, loads: Sequence[float], target: int, *, minimum: int, maximum: int, now_s: float) -> int:
        """The target from now on.

        Parameters
        ----------
        loads
            Of each agent that runs: the share of the time in which it worked, or the fill of its mailbox if that is
            more, 0 to 1.
        """
        target = min(max(target, minimum), maximum)
        if now_s - self._changed_at_s < COOL_DOWN_S or len(loads) < target:
            self._busy_since_s = self._idle_since_s = None
            return target
        total = sum(loads)
        wanted = target
        if total > BUSY * target:
            self._idle_since_s = None
            self._busy_since_s = now_s if self._busy_since_s is None else self._busy_since_s
            if now_s - self._busy_since_s >= UP_AFTER_S:
                wanted = min(maximum, 2 * target, math.ceil(total / AIM))
        elif target > minimum and total < AIM * (target - 1):
            self._busy_since_s = None
            self._idle_since_s = now_s if self._idle_since_s is None else self._idle_since_s
            if now_s - self._idle_since_s >= DOWN_AFTER_S:
                wanted = target - 1
        else:
            self._busy_since_s = self._idle_since_s = None
        if wanted != target:
            self._changed_at_s, self._busy_since_s, self._idle_since_s = now_s, None, None
        return wanted
