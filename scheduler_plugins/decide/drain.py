"""What can still be done on a worker that has so long to live.  PURE

A notice says when a worker ends: two minutes on most spot machines, thirty seconds after SIGTERM in Kubernetes. Nothing
new is begun there. What will end in time may; the rest is run elsewhere from now on, and not when it is too late. The
results move last, since until then there will be more of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MARGIN_S = 1.0
"""Kept for what nobody has thought of: a message, a slow disk, a busy event loop."""
MARGIN_RATIO = 0.1


@dataclass(frozen=True, slots=True)
class Left:
    """A task that runs there."""

    task: Any
    p50_s: float
    """Until it has ended, in the middle of what is likely, and in all but few cases."""
    p99_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How the time is spent."""

    wait_s: float
    """Longest that the worker goes on with what runs there."""
    elsewhere: tuple[Any, ...]
    """Tasks that are begun anew on other workers, at once."""


def plan(running: Iterable[Left], notice_s: float, results_bytes: float, bytes_per_s: float) -> Plan:
    """Spend the time that a worker has.

    A task may go on here while it probably ends in time; where that is likely but not sure, it runs elsewhere as well,
    and the first one counts. The caller starts the second as a copy, so nothing is lost either way.

    >>> plan([Left("short", 2.0, 3.0), Left("long", 60.0, 90.0)], 30.0, 0.0, 1e8)
    Plan(wait_s=26.0, elsewhere=('long',))
    """
    wait_s = notice_s - MARGIN_S - MARGIN_RATIO * notice_s - results_bytes / max(bytes_per_s, 1.0)
    return Plan(max(wait_s, 0.0), tuple(each.task for each in running if each.p99_s > wait_s))
