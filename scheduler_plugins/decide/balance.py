"""Which tasks that wait on a worker are asked back.  PURE

Placement binds late, so few tasks wait on workers, and those only for a moment; where that moment becomes long, the
estimate was wrong, or the worker is in trouble, and they had better go back to the pool.
"""

from __future__ import annotations

from typing import Any

from scheduler_plugins.decide.load import Load

PATIENCE_S = 0.1
"""Longer than this beyond what was planned, a task need not wait on a worker. To ask for it back takes a few ms."""
AGAIN = 2.0
"""What fetching inputs elsewhere counts for, over the time that it took here: others wait for the same link."""
MOST_MOVES = 2
"""Times that one task is taken back."""
CONSENT_S = 1.0
"""After so long without an answer, tasks are taken back without the worker's consent."""


def overdue(load: Load, now_s: float, planned_s: float) -> list[Any]:
    """The tasks that wait on this worker and will have to for too long, if any do.

    Parameters
    ----------
    planned_s
        How long before a thread is free a task may be sent to its worker.
    """
    if not load.waiting:
        return []
    free_in_s = load.free_in_s(now_s)
    limit_s = planned_s + PATIENCE_S + load.waiting_s / max(load.threads - load.held, 1)
    if free_in_s <= limit_s:
        return []
    # What has fetched its inputs would have to do so again.
    return [each.task for each in load.waiting.values() if free_in_s > limit_s + AGAIN * each.fetch_s]
