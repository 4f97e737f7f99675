"""How many workers a cluster should have, and which may go.  PURE

Two rules, and one quantity in both: how long a worker takes to start. A worker is asked for when it will work for at
least as long as it takes to start; it is let go when it has had nothing to do for as long, and for `KEEP_S`. That is at
most twice what somebody would pay who knew the future (ski rental: Karlin et al., Algorithmica 3, 1988).

What was asked for stays asked for while there are tasks for it, however estimates change: so of one load the number of
workers goes up once and down once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import ceil
from statistics import median

PRIOR_START_S = 1.0
"""What a worker takes to start, as long as none has; then the median of the last `STARTS`."""
STARTS = 9
LEAST_S, MOST_S = 0.5, 60.0
"""Shorter than that nobody asks Dask for its target; longer than that no worker is kept for tasks that may come."""
KEEP_S = 3.0
"""Shorter than that no worker is kept, however soon it starts: tasks come in bursts, and it would go to and fro."""
PATIENCE = 10.0
"""Times the start of a worker that one is kept with nothing to do, while tasks wait for others that run: at a barrier,
all but one worker are idle and needed a moment later."""
FULL_RATIO, ROOMY_RATIO = 0.6, 0.5
"""Share of all workers' memory that results fill, above which more workers are asked for, and below which some may go.
The first is Dask's (`Scheduler.adaptive_target`), as the second (`workers_to_close`, whose `memory_ratio` is 2)."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a cluster has to do, and what it has."""

    ready: int
    """Tasks that could run now, those that do included."""
    unfinished: int
    """The same, and those that wait for others."""
    work_s: float
    """Seconds that all unfinished tasks take on one thread of an average worker."""
    workers: int
    busy: int
    """Workers that were given something."""
    threads: float = 1.0
    """Of one worker, on average."""
    results_bytes: float = 0.0
    limit_bytes: float = 0.0
    """Memory of one worker, on average; 0: not known, or without limit."""


def wanted(demand: Demand, horizon_s: float) -> int:
    """Workers that would each have work for so long, and memory for the results.

    >>> wanted(Demand(ready=8, unfinished=8, work_s=80.0, workers=0, busy=0), horizon_s=5.0)
    8
    >>> wanted(Demand(ready=1000, unfinished=1000, work_s=10.0, workers=0, busy=0), horizon_s=5.0)
    2
    """
    by_work = min(demand.work_s / horizon_s, demand.ready) / demand.threads
    return max(ceil(by_work), min(demand.ready, 1), _for_memory(demand, FULL_RATIO))


def useful(demand: Demand) -> int:
    """Workers that tasks or results could occupy now."""
    return max(ceil(demand.ready / demand.threads), demand.busy, _for_memory(demand, ROOMY_RATIO))


def _for_memory(demand: Demand, ratio: float) -> int:
    if not demand.results_bytes:
        return 0
    return max(1, ceil(demand.results_bytes / (ratio * demand.limit_bytes))) if demand.limit_bytes > 0 else 1


class Scale:
    """Answers how many workers there should be, whenever it is asked.

    >>> scale = Scale()
    >>> burst = Demand(ready=4, unfinished=4, work_s=2.0, workers=0, busy=0)
    >>> scale.target(burst, target_s=5.0, now_s=0.0)
    2
    """

    def __init__(self) -> None:
        self._starts_s: deque[float] = deque(maxlen=STARTS)
        self._asked_at_s: deque[float] = deque()
        """Of workers that have not come yet: when each was asked for."""
        self._recent: deque[tuple[float, int]] = deque()
        """(when, how many were of use), as far back as a worker is kept for it."""
        self._target = 0

    @property
    def start_s(self) -> float:
        """From asking for a worker until it comes."""
        return median(self._starts_s) if self._starts_s else PRIOR_START_S

    def joined(self, now_s: float) -> None:
        """A worker has come."""
        if self._asked_at_s:
            self._starts_s.append(max(now_s - self._asked_at_s.popleft(), 0.0))

    def target(self, demand: Demand, target_s: float, now_s: float) -> int:
        """How many workers there should be.

        Parameters
        ----------
        target_s
            How long all that is to be done may take, by whoever asks (`Adaptive.target_duration`). More workers than
            for that are asked for only where they start sooner.
        """
        start_s = min(max(self.start_s, LEAST_S), MOST_S)
        asked = wanted(demand, min(start_s, max(target_s, LEAST_S)))
        here = max(self._target, demand.workers)
        of_use = max(asked, min(useful(demand), here))
        self._recent.append((now_s, of_use))
        while self._recent[0][0] < now_s - PATIENCE * start_s:
            self._recent.popleft()
        lately = max(count for at_s, count in self._recent if at_s >= now_s - max(start_s, KEEP_S))
        before = max(count for _, count in self._recent)
        waiting = ceil(demand.unfinished / demand.threads) if demand.unfinished > demand.ready else 0
        self._target = max(lately, min(before, waiting))
        self._note(demand.workers, now_s)
        return self._target

    def _note(self, workers: int, now_s: float) -> None:
        missing = max(self._target - workers, 0)
        while len(self._asked_at_s) > missing:
            self._asked_at_s.pop()
        self._asked_at_s.extend([now_s] * min(missing - len(self._asked_at_s), STARTS))


@dataclass(frozen=True, slots=True)
class Holding:
    """A worker that could go."""

    worker: Hashable
    group: Hashable
    """Workers of a group go together."""
    is_idle: bool
    unique_bytes: float
    """Of results that only it has: they would have to move."""
    free_bytes: float
    """Memory in which it could take results of others."""


def leaving(holdings: Iterable[Holding], count: int, order: Callable[[Hashable], str] = str) -> list[Hashable]:
    """At most so many workers to close: idle ones, whole groups of them, whose results the others have room for.

    Those with the fewest results of their own go first; among equals always the same, since Dask's `Adaptive` closes
    only whom it was told of several times in a row.

    >>> leaving([Holding("a", "a", True, 5.0, 9.0), Holding("b", "b", True, 1.0, 9.0)], count=1)
    ['b']
    """
    groups: dict[Hashable, list[Holding]] = {}
    for holding in holdings:
        groups.setdefault(holding.group, []).append(holding)
    idle = [group for group in groups.values() if all(each.is_idle for each in group)]
    idle.sort(key=lambda group: (sum(each.unique_bytes for each in group), order(group[0].worker)))
    room = sum(each.free_bytes for group in groups.values() for each in group)
    staying, chosen, moving = sum(map(len, groups.values())), list[Hashable](), 0.0
    for group in idle:
        moves = sum(each.unique_bytes for each in group)
        left = room - sum(each.free_bytes for each in group)
        has_nowhere_to_go = moving + moves > 0.0 and (staying == len(group) or moving + moves > left)
        if len(chosen) + len(group) > count or has_nowhere_to_go:
            continue
        chosen += [each.worker for each in group]
        staying, moving, room = staying - len(group), moving + moves, left
    return list(islice(chosen, count))
