"""Ready tasks on shelves: by where their inputs are, and on each in Dask's order and by rank.  PURE"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import islice
from math import exp2, floor, inf, log2
from typing import Any, NamedTuple

Task = Any
"""As whoever uses this names it; hashable."""
Worker = Any
Priority = tuple[Any, ...]
"""As Dask's: what lower comes first, goes first. The first part is the user's, and no rule goes over it."""
Place = tuple[Any, int]

PER_OCTAVE = 4
"""Steps of rank and of speed within a factor of two."""
MOST_STALE = 4
"""Items on a shelf, over the tasks that are ready there, from which on it is tidied."""

ROOTS, ANYWHERE = "roots", "anywhere"
"""Homes of tasks that have none: those that begin something new, and those that go on with something."""
NOWHERE = (ROOTS, ANYWHERE)


class Cost(NamedTuple):
    """What is known of a ready task."""

    p50_s: float
    """On a worker of average speed, as is p99_s."""
    p99_s: float
    is_known: bool
    """Whether a task of its function has ever been seen."""
    output_bytes: float
    kind: Any = None
    """For the first of many tasks of a function of which nothing is known: what they have in common."""


class Entry:
    """A ready task in the pool."""

    __slots__ = (
        "cost",
        "home",
        "input_bytes",
        "is_last",
        "is_ready",
        "left_until_s",
        "level",
        "place",
        "priority",
        "rank_s",
        "task",
    )

    def __init__(
        self, task: Task, priority: Priority, cost: Cost, rank_s: float, home: Worker, input_bytes: float, is_last: bool
    ) -> None:
        self.task = task
        self.priority = priority
        self.level = priority[0]
        self.cost = cost
        self.rank_s = max(rank_s, cost.p50_s)
        self.home = home
        """The worker with most of its inputs; or ROOTS, or ANYWHERE."""
        self.input_bytes = input_bytes
        self.is_last = is_last
        """Whether nothing waits for its result."""
        self.place = (self.level, -2 * step_of(self.rank_s) + is_last)
        """What lower comes first, the user wants first; of that, longer paths come first. Odd: nothing waits for it."""
        self.is_ready = True
        self.left_until_s = inf
        """So long workers leave it to others."""


Item = tuple[Priority, int, Entry]


class Line:
    """Tasks by priority. What comes in order, as nearly all of a graph does, costs less here than in a heap."""

    __slots__ = ("_others", "_run")

    def __init__(self) -> None:
        self._run: deque[Item] = deque()
        """Each came after those before it in here."""
        self._others: list[Item] = []
        """A heap."""

    def __len__(self) -> int:
        return len(self._run) + len(self._others)

    def __iter__(self) -> Iterator[Item]:
        yield from self._run
        yield from self._others

    def put(self, item: Item) -> None:
        run = self._run
        if not run or run[-1] < item:
            run.append(item)
        else:
            heappush(self._others, item)

    def head(self) -> Item | None:
        run, others = self._run, self._others
        if not others:
            return run[0] if run else None
        return others[0] if not run or others[0] < run[0] else run[0]

    def in_a_row(self, most: int) -> Iterator[Item]:
        """The first ones, as far as nothing that came out of order goes between them."""
        run, others = self._run, self._others
        for item in islice(run, most):
            if others and others[0] < item:
                return
            yield item

    def drop(self) -> None:
        """Take the head out."""
        run, others = self._run, self._others
        if others and (not run or others[0] < run[0]):
            heappop(others)
        else:
            run.popleft()


class Shelf:
    """Ready tasks with their inputs on the same worker, by rank."""

    __slots__ = ("_order", "_places", "backlog_step", "count", "lines", "seconds")

    def __init__(self) -> None:
        self._order = Line()
        """All of them. What was taken otherwise stays in a line until it comes up."""
        self.lines: dict[Place, Line] = {}
        """Tasks of about the same rank go in Dask's order."""
        self._places: list[Place] = []
        """Of the lines, in order."""
        self.count = 0
        """Of tasks that are still ready."""
        self.seconds = 0.0
        self.backlog_step: int | None = None
        """Under which its worker is found among those with most to do."""

    def put(self, entry: Entry, serial: int) -> None:
        self._order.put(self._put_by_rank(entry, serial))
        if len(self._order) + len(self.lines[entry.place]) > MOST_STALE * (self.count + 16):
            self._tidy()

    def _tidy(self) -> None:
        """Drop what is no longer ready, and what was put more than once: it may never come up."""
        first: dict[Entry, Item] = {}
        for item in sorted(self._order):
            if item[2].is_ready:
                first.setdefault(item[2], item)
        self._order = Line()
        self.lines.clear()
        self._places.clear()
        for _, serial, entry in first.values():
            self._order.put(self._put_by_rank(entry, serial))

    def replace(self, entry: Entry, before: Place, serial: int) -> None:
        """Its rank has changed; what was put before is passed over when it comes up."""
        self._put_by_rank(entry, serial)
        self.head(before)

    def _put_by_rank(self, entry: Entry, serial: int) -> Item:
        line = self.lines.get(entry.place)
        if line is None:
            line = self.lines[entry.place] = Line()
            insort(self._places, entry.place)
        item = (entry.priority, serial, entry)
        line.put(item)
        return item

    def head(self, place: Place) -> Entry | None:
        """The first of this place that is still ready."""
        line = self.lines.get(place)
        if line is None:
            return None
        while (item := line.head()) is not None:
            entry = item[2]
            if entry.is_ready and entry.place == place:
                return entry
            line.drop()
        del self.lines[place]
        self._places.remove(place)
        return None

    def first(self) -> Entry | None:
        """The first in Dask's order."""
        order = self._order
        while (item := order.head()) is not None:
            if item[2].is_ready:
                return item[2]
            order.drop()
        return None

    def following(self, entry: Entry, most: int) -> Iterator[Entry]:
        """Those that come after the first, if they are of the same place; not all, should others stand between."""
        passed = {entry}
        for _, _, other in self._order.in_a_row(most):
            if other.is_ready and other not in passed:
                if other.place != entry.place:
                    return
                passed.add(other)
                yield other

    def longest(self, limit_s: float = inf) -> Entry | None:
        """The one with the highest rank, of those not above the limit; what the user wants first before others."""
        least = -inf if limit_s == inf else -2 * step_of(limit_s)
        for place in list(self._places):
            if place[1] >= least and (entry := self.head(place)) is not None and entry.rank_s <= limit_s:
                return entry
        return None


def highest_s(step: int) -> float:
    """Upper end of the ranks of such a place, in seconds."""
    return exp2((1 - (step >> 1)) / PER_OCTAVE)


def step_of(value: float) -> int:
    """The place of a duration or factor on a scale with four steps to the octave."""
    return floor(log2(value) * PER_OCTAVE) if value > 1e-9 else -120
