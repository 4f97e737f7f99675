"""Which ready task goes to which worker, and when.  PURE

Tasks are bound late: those that are ready wait in one pool at the scheduler, and a worker gets the next one when it has
room. So little of what turns out wrong has to be undone. What is weighed:

- Order. Dask's own, which saves memory, until the longest path that hangs on some ready task is a good part of the time
  that all work will still take; from then on the longest path goes first. So a long chain is not starved by wide work,
  and the longest of independent tasks do not begin last (LPT, Graham: "Bounds on multiprocessing timing anomalies",
  SIAM J. Appl. Math. 17(2), 1969).
- Take or wait. A slow worker takes a task only if the faster ones would not have it done by then, with all else that
  they have to do; a task stays with its inputs unless another worker would finish it sooner in spite of the transfer.
- Depth. A worker has room when one of its threads will soon be free, so that the next task and its inputs arrive
  just in time: short tasks flow, long ones wait where they can still go anywhere.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from math import exp2, floor, inf, log2
from typing import Any, NamedTuple

from scheduler_plugins.decide.load import FETCH_S, Given, Load
from scheduler_plugins.decide.strategy import DEFAULT, Strategy

Task = Any
"""As whoever uses this names it; hashable."""
Worker = Any
Priority = tuple[Any, ...]
"""As Dask's: what lower comes first, goes first. The first part is the user's, and no rule goes over it."""
Place = tuple[Any, int]

SLOWER = 1.3
"""Ratio of durations from which on a worker counts as slower than another: speeds are learned from noisy durations."""
PER_OCTAVE = 4
"""Steps of rank and of speed within a factor of two."""
MOST_TRIED = 10_000
"""Kinds of task that are remembered to have been tried."""
MOST_LEAD_S = 0.1
"""Most that the horizon is extended for transfers."""
LEAD_RATE = 0.1
"""Weight of the last transfer in the moving average."""
CERTAIN = 2
"""Tasks after which it may be trusted when a worker says that it will soon be free."""
SHORT_S = 0.1
"""A shorter task does not hold up another for long, whatever the worker."""
MOST_WAITING = 512
"""Tasks per thread."""
WAITING_BYTES = 64e6
"""Predicted results of the tasks that wait on one worker."""
TRIES = 4
"""Tasks that a worker may decline before it is left idle, and workers that may before the slower ones are not asked."""
MOST_STALE = 4
"""Items on a shelf, over the tasks that are ready there, from which on it is tidied."""
LOOKS = 16
"""Tasks that may not fit on a worker before it is left idle."""


ROOTS, ANYWHERE = "roots", "anywhere"
"""Homes of tasks that have none: those that begin something new, and those that go on with something."""
_NOWHERE = (ROOTS, ANYWHERE)


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


class Choice(NamedTuple):
    """A task goes to a worker."""

    task: Task
    worker: Worker
    rule: str
    """Why: "probe" (the first of its kind: many will follow), "critical", "longest" (of those that nothing waits for),
    "order", "local", "moved" (away from its inputs), "filler" (the best for a slow worker) or "prefetch" (its inputs
    can come while the worker is busy)."""


class Outlook(NamedTuple):
    """How things stand for one worker; seconds, infinite where there is no faster worker."""

    all_s: float
    """For all workers to do all that is left."""
    faster_s: float
    """For the faster ones to do it."""
    pool_s: float
    """For the faster ones to end what they have and then what is ready."""


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
        self.place = (self.level, -2 * _step(self.rank_s) + is_last)
        """What lower comes first, the user wants first; of that, longer paths come first. Odd: nothing waits for it."""
        self.is_ready = True
        self.left_until_s = inf
        """So long workers leave it to others."""


Item = tuple[Priority, int, Entry]


class Shelf:
    """Ready tasks with their inputs on the same worker, by rank."""

    __slots__ = ("_order", "_places", "backlog_step", "count", "heaps", "seconds")

    def __init__(self) -> None:
        self._order: list[Item] = []
        """All of them by priority. What was taken otherwise stays in a heap until it comes up."""
        self.heaps: dict[Place, list[Item]] = {}
        """By priority. Tasks of about the same rank go in Dask's order."""
        self._places: list[Place] = []
        """Of the heaps, in order."""
        self.count = 0
        """Of tasks that are still ready."""
        self.seconds = 0.0
        self.backlog_step: int | None = None
        """Under which its worker is found among those with most to do."""

    def put(self, entry: Entry, serial: int) -> None:
        heappush(self._order, self._put_by_rank(entry, serial))
        if len(self._order) + len(self.heaps[entry.place]) > MOST_STALE * (self.count + 16):
            self._tidy()

    def _tidy(self) -> None:
        """Drop what is no longer ready, and what was put more than once: it may never come up."""
        first: dict[Entry, Item] = {}
        for item in sorted(self._order):
            if item[2].is_ready:
                first.setdefault(item[2], item)
        self._order = list(first.values())
        self.heaps.clear()
        self._places.clear()
        for _, serial, entry in self._order:
            self._put_by_rank(entry, serial)

    def replace(self, entry: Entry, before: Place, serial: int) -> None:
        """Its rank has changed; what was put before is passed over when it comes up."""
        self._put_by_rank(entry, serial)
        self.head(before)

    def _put_by_rank(self, entry: Entry, serial: int) -> Item:
        heap = self.heaps.get(entry.place)
        if heap is None:
            heap = self.heaps[entry.place] = []
            insort(self._places, entry.place)
        item = (entry.priority, serial, entry)
        heappush(heap, item)
        return item

    def head(self, place: Place) -> Entry | None:
        """The first of this place that is still ready."""
        heap = self.heaps.get(place)
        while heap:
            entry = heap[0][2]
            if entry.is_ready and entry.place == place:
                return entry
            heappop(heap)
        if heap is not None:
            del self.heaps[place]
            self._places.remove(place)
        return None

    def first(self) -> Entry | None:
        """The first in Dask's order."""
        order = self._order
        while order:
            entry = order[0][2]
            if entry.is_ready:
                return entry
            heappop(order)
        return None

    def longest(self, limit_s: float = inf) -> Entry | None:
        """The one with the highest rank, of those not above the limit; what the user wants first before others."""
        least = -inf if limit_s == inf else -2 * _step(limit_s)
        for place in list(self._places):
            if place[1] >= least and (entry := self.head(place)) is not None and entry.rank_s <= limit_s:
                return entry
        return None


@dataclass(slots=True)
class Tally:
    """Workers that are about equally fast, together."""

    views: dict[Worker, WorkerView] = field(default_factory=dict)
    threads: int = 0
    speed: float = 0.0
    """Threads over factors."""
    given: int = 0
    """Tasks that they have."""
    ends_s: float = 0.0
    """Sum of the times at which these are thought to end."""


@dataclass(slots=True)
class WorkerView:
    """A worker that may be given tasks."""

    worker: Worker
    load: Load
    factor: float = 1.0
    """Of durations, over those on an average worker."""
    step: int = 0
    """Of the factor."""
    unsure_steps: int = 0
    ends_s: float = 0.0
    """Sum of the times at which its tasks are thought to end."""
    is_hungry: bool = False
    seen: int = 0
    """Tasks that it has ended."""
    wakes_at_s: float = inf
    """When it will be asked anyway."""
    sends_until_s: float = 0.0
    """When the inputs that others were told to fetch from it will have gone."""
    sends: dict[Worker, float] = field(default_factory=dict)
    """To whom, until when. What many tasks there need is fetched once."""

    def send(self, worker: Worker, seconds: float, now_s: float) -> None:
        """Another worker was given a task whose inputs are here."""
        if self.sends.get(worker, 0.0) < now_s:
            if self.sends_until_s < now_s:
                self.sends.clear()
            self.sends[worker] = self.sends_until_s = max(self.sends_until_s, now_s) + seconds


def _anything(task: Task, worker: Worker) -> bool:  # noqa: ARG001 - the default of `Placement.fits`
    return True


class Placement:
    """The pool, the workers, and the rules.

    Parameters
    ----------
    factor
        (task, worker) → duration there over that on an average worker.
    transfer_s
        (task, worker) → how long its inputs take to get there.
    remaining_s
        Durations of all unfinished tasks on workers of average speed.
    is_open
        Whether Dask lets a worker have new tasks: it is not paused, retiring, …
    fits
        Whether a worker may be given this task now: there is memory for it, it has not hung there before, …
    """

    def __init__(
        self,
        *,
        factor: Callable[[Task, Worker], float],
        transfer_s: Callable[[Task, Worker], float],
        remaining_s: Callable[[], float],
        is_open: Callable[[Worker], bool],
        fits: Callable[[Task, Worker], bool] = _anything,
        strategy: Strategy = DEFAULT,
    ) -> None:
        self._factor = factor
        self._transfer_s = transfer_s
        self._remaining_s = remaining_s
        self._is_open = is_open
        self._fits = fits
        self._misfits: list[WorkerView] = []
        """Workers with room that nothing fitted on."""
        self.strategy = strategy
        """May be replaced by another at any time."""
        self._lead_s = 0.0
        """Moving average of the transfers of tasks that were given to workers."""
        self._entries: dict[Task, Entry] = {}
        self._shelves: dict[Worker, Shelf] = {}
        self._places: dict[Any, dict[int, dict[Worker, int]]] = {}
        """The user's priority → step of rank, negative → home → how many are ready."""
        self._backlogs: dict[int, dict[Worker, None]] = {}
        """Step of the time that the tasks take of which a worker has the inputs → such workers."""
        self._unknown: dict[tuple[Any, Any], Task] = {}
        """Priority and kind of task of which nothing is known, and none has been tried → the first that is ready."""
        self._tried: set[Any] = set()
        self._serial = 0
        self.views: dict[Worker, WorkerView] = {}
        self._on: dict[Task, WorkerView] = {}
        self._speeds: dict[int, Tally] = {}
        """Step of the factor → the workers there."""
        self._pool_s = 0.0
        """Durations of all that is in the pool."""
        self._hungry: dict[int, dict[Worker, WorkerView]] = {}
        """Step of the factor → workers that may have room."""
        self._at_home: dict[Worker, WorkerView] = {}
        """Those of them that have the inputs of ready tasks."""
        self._alarms: list[tuple[float, int, Worker]] = []
        """When workers will have room that have none now."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task: Task) -> bool:
        return task in self._entries

    # -- workers ---------------------------------------------------------------------------------------------------

    def join(self, worker: Worker, threads: int) -> None:
        self.leave(worker)
        view = self.views[worker] = WorkerView(worker, Load(threads))
        self._count_speed(view, +1)
        self._hunger(view)

    def leave(self, worker: Worker) -> None:
        """Its tasks are ended by whoever calls this; what it was the home of goes anywhere."""
        view = self.views.pop(worker, None)
        if view is None:
            return
        self._count_speed(view, -1)
        self._feed(view)
        for task in view.load.tasks():
            self._on.pop(task, None)
        shelf = self._shelves.get(worker)
        if shelf is not None:
            for entry in dict.fromkeys(each for heap in shelf.heaps.values() for _, _, each in heap if each.is_ready):
                self._take_out(entry)
                entry.home = ANYWHERE
                self._shelve(entry)

    def hold(self, worker: Worker, threads: int, now_s: float) -> None:
        """So many of its threads are lost to tasks that are wanted no more."""
        view = self.views.get(worker)
        if view is not None and view.load.held != threads:
            view.load.hold(threads, now_s)
            self._hunger(view)

    def set_speed(self, worker: Worker, factor: float, doubt: float = 1.0) -> None:
        """Durations on this worker, over those on an average one; and the ratio by which that may well be wrong."""
        view = self.views.get(worker)
        if view is None:
            return
        view.unsure_steps = _step(doubt)
        if view.factor != factor:
            self._count_speed(view, -1)
            was_hungry = view.is_hungry
            self._feed(view)
            view.factor = factor
            view.step = _step(factor)
            if was_hungry:
                self._hunger(view)
            self._count_speed(view, +1)
            if (shelf := self._shelves.get(worker)) is not None:
                self._weigh(worker, shelf)

    def _count_speed(self, view: WorkerView, sign: int) -> None:
        tally = self._speeds.get(view.step)
        if tally is None:
            tally = self._speeds[view.step] = Tally()
        if sign > 0:
            tally.views[view.worker] = view
        else:
            del tally.views[view.worker]
        tally.threads += sign * view.load.threads
        tally.speed += sign * view.load.threads / view.factor
        tally.given += sign * len(view.load)
        tally.ends_s += sign * view.ends_s
        if not tally.views:
            del self._speeds[view.step]

    def _hunger(self, view: WorkerView) -> None:
        if not view.is_hungry:
            view.is_hungry = True
            self._hungry.setdefault(view.step, {})[view.worker] = view
            if view.worker in self._shelves:
                self._at_home[view.worker] = view

    def _feed(self, view: WorkerView) -> None:
        if view.is_hungry:
            view.is_hungry = False
            group = self._hungry[view.step]
            del group[view.worker]
            if not group:
                del self._hungry[view.step]
            self._at_home.pop(view.worker, None)

    # -- tasks -----------------------------------------------------------------------------------------------------

    def ready(
        self,
        task: Task,
        priority: Priority,
        cost: Cost,
        rank_s: float,
        home: Worker = ROOTS,
        input_bytes: float = 0.0,
        *,
        is_last: bool = False,
    ) -> None:
        """A task waits for a worker.

        Parameters
        ----------
        home
            The worker with most of its inputs, ANYWHERE, or ROOTS for those that only begin something.
        is_last
            Whether nothing waits for its result.
        """
        if task in self._entries:
            self.unready(task)
        if home not in (ROOTS, ANYWHERE) and home not in self.views:
            home = ANYWHERE
        entry = Entry(task, priority, cost, rank_s, home, input_bytes, is_last)
        self._entries[task] = entry
        if cost.kind is not None and cost.kind not in self._tried:
            self._unknown.setdefault((entry.level, cost.kind), task)
        self._shelve(entry)

    def _shelve(self, entry: Entry) -> None:
        home = entry.home
        shelf = self._shelves.get(home)
        if shelf is None:
            shelf = self._shelves[home] = Shelf()
            view = self.views.get(home)
            if view is not None and view.is_hungry:
                self._at_home[home] = view
        self._serial += 1
        shelf.put(entry, self._serial)
        level, step = entry.place
        homes = self._places.setdefault(level, {}).setdefault(step, {})
        homes[home] = homes.get(home, 0) + 1
        shelf.count += 1
        shelf.seconds += entry.cost.p50_s
        self._pool_s += entry.cost.p50_s
        self._weigh(home, shelf)

    def _take_out(self, entry: Entry) -> None:
        """What `_shelve` counted, counts no more."""
        home, (level, step) = entry.home, entry.place
        homes = self._places[level][step]
        homes[home] -= 1
        if not homes[home]:
            del homes[home]
            if not homes:
                del self._places[level][step]
                if not self._places[level]:
                    del self._places[level]
        shelf = self._shelves[home]
        shelf.count -= 1
        shelf.head(entry.place)
        shelf.seconds = shelf.seconds - entry.cost.p50_s if shelf.count else 0.0
        self._pool_s = max(self._pool_s - entry.cost.p50_s, 0.0)
        self._weigh(home, shelf)
        if not shelf.count:
            del self._shelves[home]
            self._at_home.pop(home, None)

    def _weigh(self, home: Worker, shelf: Shelf) -> None:
        """Keep the workers sorted by how much there is to do for which they have the inputs."""
        view = self.views.get(home)
        step = None if view is None or not shelf.count else _step(shelf.seconds) + view.step
        if step == shelf.backlog_step:
            return
        if shelf.backlog_step is not None:
            peers = self._backlogs[shelf.backlog_step]
            del peers[home]
            if not peers:
                del self._backlogs[shelf.backlog_step]
        if step is not None:
            self._backlogs.setdefault(step, {})[home] = None
        shelf.backlog_step = step

    def rank(self, task: Task, rank_s: float, cost: Callable[[Task], Cost]) -> None:
        """The path that hangs on a task is another than it was thought to be, and so may be its own duration."""
        entry = self._entries.get(task)
        if entry is not None and -_step(max(rank_s, 1e-9)) != entry.place[1] >> 1:
            home, nbytes = entry.home, entry.input_bytes
            known = cost(task)
            if known.kind is not None:
                self.ready(task, entry.priority, known, rank_s, home, nbytes, is_last=entry.is_last)
            else:
                self._replace(entry, known, rank_s)

    def _replace(self, entry: Entry, cost: Cost, rank_s: float) -> None:
        """It stays where it is in Dask's order, and goes elsewhere by rank."""
        level, step = entry.place
        homes, home, more_s = self._places[level][step], entry.home, cost.p50_s - entry.cost.p50_s
        homes[home] -= 1
        if not homes[home]:
            del homes[home]
            if not homes:
                del self._places[level][step]
        entry.cost = cost
        entry.rank_s = max(rank_s, cost.p50_s)
        entry.place = (level, -2 * _step(entry.rank_s) + entry.is_last)
        homes = self._places[level].setdefault(entry.place[1], {})
        homes[home] = homes.get(home, 0) + 1
        self._serial += 1
        shelf = self._shelves[home]
        shelf.replace(entry, (level, step), self._serial)
        shelf.seconds = max(shelf.seconds + more_s, 0.0)
        self._pool_s = max(self._pool_s + more_s, 0.0)
        self._weigh(home, shelf)

    def unready(self, task: Task) -> None:
        """A task does not wait for a worker any more: it was given to one, or is not wanted."""
        entry = self._entries.pop(task, None)
        if entry is None:
            return
        entry.is_ready = False
        self._take_out(entry)
        if not self._entries:
            self._pool_s = 0.0
            self._unknown.clear()
            if len(self._tried) > MOST_TRIED:
                self._tried.clear()

    def given(self, task: Task, worker: Worker, now_s: float, cost: Callable[[Task], Cost]) -> None:
        """A worker was sent a task, by these rules or by Dask's; `cost` is asked where it was not in the pool."""
        entry = self._entries.get(task)
        known = cost(task) if entry is None else entry.cost
        transfer_s = self._transfer_s(task, worker) if entry is not None and entry.input_bytes else 0.0
        self.unready(task)
        view = self.views.get(worker)
        if view is None:
            return
        if transfer_s > 0.0 and entry is not None and (home := self.views.get(entry.home)) is not None:
            home.send(worker, transfer_s, now_s)
        factor = self._factor(task, worker)
        tail_s = 0.0 if entry is None else entry.rank_s - entry.cost.p50_s
        nbytes = known.output_bytes + (0.0 if entry is None else entry.input_bytes)
        p50_s, p99_s = known.p50_s * factor, known.p99_s * factor
        load = view.load
        ends_at_s = now_s + max(transfer_s, load.waiting_s / load.threads) + p50_s
        given = Given(task, p50_s, p99_s, known.is_known, now_s, tail_s, transfer_s, nbytes, ends_at_s)
        given.ranked_s = known.p50_s
        load.give(given)
        view.ends_s += ends_at_s
        tally = self._speeds[view.step]
        tally.given += 1
        tally.ends_s += ends_at_s
        self._lead_s += LEAD_RATE * (min(transfer_s, MOST_LEAD_S) - self._lead_s)
        self._on[task] = view

    def view(self, task: Task) -> WorkerView | None:
        """Of the worker that was given a task."""
        return self._on.get(task)

    def ended(self, task: Task, now_s: float) -> Given | None:
        """The worker that was given a task has it no more."""
        view = self._on.pop(task, None)
        if view is None:
            return None
        given = view.load.end(task, now_s)
        view.seen += 1
        if given is not None:
            view.ends_s = view.ends_s - given.ends_at_s if len(view.load) else 0.0
            tally = self._speeds[view.step]
            tally.given -= 1
            tally.ends_s = tally.ends_s - given.ends_at_s if tally.given else 0.0
        load = view.load
        if load.free_threads > 0 or load.waiting_s < self.strategy.refill * self.planned_s * load.threads:
            self._hunger(view)
        return given

    def seceded(self, task: Task, now_s: float) -> None:
        """A task that runs has left its thread to others (`distributed.secede`, `worker_client`)."""
        view = self._on.get(task)
        if view is not None and task in view.load.running:
            self.ended(task, now_s)
            view.seen -= 1
            self._hunger(view)

    def spare(self) -> Iterator[Worker]:
        """Workers with an idle thread for which there is nothing to do, the fastest first."""
        for step in sorted(self._hungry):
            for worker, view in self._hungry[step].items():
                if view.load.free_threads > len(view.load.fetching) and self._is_open(worker):
                    yield worker

    def backlog_s(self) -> float:
        """How long all workers together need for what is ready; 0 when nothing is."""
        speed = sum(tally.speed for tally in self._speeds.values())
        return self._pool_s / speed if self._entries and speed else 0.0

    # -- the rules -------------------------------------------------------------------------------------------------

    def choices(self, now_s: float) -> Iterator[Choice]:
        """What is to be given now. Each is to be carried out (`given`) before the next is asked for."""
        alarms = self._alarms
        if not self._hungry and not (alarms and alarms[0][0] <= now_s):
            return
        while alarms and alarms[0][0] <= now_s:
            view = self.views.get(heappop(alarms)[2])
            if view is not None:
                view.wakes_at_s = inf
                self._hunger(view)
        if self._entries:
            yield from self._to_their_inputs(now_s)
            yield from self._to_the_fastest(now_s, idle=True)
            yield from self._to_the_fastest(now_s, idle=False)

    def _to_their_inputs(self, now_s: float) -> Iterator[Choice]:
        """To workers that have the inputs of tasks, and room."""
        declined = 0
        for worker, view in list(self._at_home.items()):
            while view.is_hungry and (choice := self._next(view, now_s)) is not None:
                yield choice
            if worker in self._at_home:
                self._at_home[worker] = self._at_home.pop(worker)  # others are asked before it the next time
                declined += 1
                if declined >= TRIES:
                    return

    def _to_the_fastest(self, now_s: float, *, idle: bool) -> Iterator[Choice]:
        """To the fastest workers first, a task each, and another: of those with an idle thread, or of those without."""
        declined = 0
        for step in sorted(self._hungry):
            group = list(self._hungry.get(step, {}).values())
            while group:
                fed = []
                for view in group:
                    if not self._entries:
                        return
                    if (view.load.free_threads > 0) is not idle:
                        continue
                    choice = self._next(view, now_s)
                    if choice is not None:
                        yield choice
                        fed.append(view)
                    elif view.is_hungry:
                        self._hungry[step][view.worker] = self._hungry[step].pop(view.worker)  # others come first now
                        declined += 1
                        if declined >= TRIES:  # what these had better leave, the slower had better leave too
                            return
                group = fed

    def _next(self, view: WorkerView, now_s: float) -> Choice | None:
        """The next task for this worker, if it has room and there is a good one."""
        if not self._entries:
            return None
        if not self._is_open(view.worker):
            self._feed(view)
            self._misfits.append(view)
            return None
        choose = self._pick if self._has_room(view, now_s) else self._prefetch
        choice = choose(view, now_s)
        if choice is not None and not self._fits(choice.task, view.worker):
            choice = self._one_that_fits(choice, view, choose, now_s)
        elif choice is None and choose == self._prefetch:
            self._feed(view)
        return choice

    def _one_that_fits(
        self,
        choice: Choice | None,
        view: WorkerView,
        choose: Callable[[WorkerView, float], Choice | None],
        now_s: float,
    ) -> Choice | None:
        """Another task for this worker: what does not fit there must not keep from it what does."""
        aside: list[tuple[Entry, str]] = []
        while choice is not None and not self._fits(choice.task, view.worker):
            entry = self._entries[choice.task]
            if len(aside) >= LOOKS:
                choice = None
                break
            if choice.rule == "probe":
                self._tried.discard(entry.cost.kind)
            else:
                entry.is_ready = False
            aside.append((entry, choice.rule))
            choice = choose(view, now_s)
        for entry, rule in aside:
            if rule == "probe":
                self._unknown[entry.level, entry.cost.kind] = entry.task
            else:
                entry.is_ready = True
                self._serial += 1
                self._shelves[entry.home].put(entry, self._serial)
        if choice is None:
            self._feed(view)
            self._misfits.append(view)
        return choice

    def reconsider(self) -> None:
        """Time has passed: what did not fit may fit now, and Dask may let workers have tasks that it did not."""
        for view in self._misfits:
            if self.views.get(view.worker) is view:
                self._hunger(view)
        self._misfits.clear()

    def look_again(self, worker: Worker) -> None:
        """Should it have room that nobody has noticed, it is asked next time: no task waits for ever by a mistake."""
        view = self.views.get(worker)
        if view is not None and view.load.free_threads > 0:
            self._hunger(view)

    def _prefetch(self, view: WorkerView, now_s: float) -> Choice | None:
        """A task that lies here with most of its inputs, for the worker to fetch the others while it is busy."""
        shelf = self._shelves.get(view.worker)
        entry = None if shelf is None else shelf.first()
        if entry is None:
            return None
        load, fetch_s = view.load, self._transfer_s(entry.task, view.worker)
        if (
            fetch_s > FETCH_S
            and len(load.fetching) < load.threads
            and load.free_in_s(now_s) <= max(fetch_s, MOST_LEAD_S) + self.planned_s
        ):
            return Choice(entry.task, view.worker, "prefetch")
        if fetch_s <= FETCH_S and load.free_threads > 0:
            return Choice(entry.task, view.worker, "local")
        return None

    @property
    def planned_s(self) -> float:
        """How long before a thread is free a worker may be sent a task."""
        return self.strategy.horizon_s + self._lead_s

    def wake_at_s(self) -> float | None:
        """When `choices` is worth asking again, though nothing has happened."""
        return self._alarms[0][0] if self._alarms and self._entries else None

    def _has_room(self, view: WorkerView, now_s: float) -> bool:
        load = view.load
        if load.fetching:
            load.settle(now_s)
        if len(load.fetching) >= load.threads:  # they will need the threads as soon as their inputs are there
            return False
        if load.free_threads > 0:
            return True
        if len(load.waiting) >= MOST_WAITING * load.threads or load.ahead_bytes > WAITING_BYTES:
            return False
        if self._is_reserved(view):
            return False
        soon_s = load.free_in_s(now_s) - self.planned_s
        if soon_s <= 0.0:
            return True
        if not load.waiting and now_s + soon_s < view.wakes_at_s:
            view.wakes_at_s = now_s + soon_s
            self._serial += 1
            heappush(self._alarms, (now_s + soon_s + 1e-4, self._serial, view.worker))
        return False

    def _is_reserved(self, view: WorkerView) -> bool:
        """Whether nothing may wait there.

        It runs a task whose end lets a path go on that decides over the end of all; or it has run too few tasks for
        anybody to know when it will be free.
        """
        running = view.load.running.values()
        if view.seen < CERTAIN and any(given.p50_s > SHORT_S for given in running):
            return True
        longest_s = max(given.tail_s for given in running) if running else 0.0
        return longest_s > 0.0 and longest_s >= self.strategy.critical * self._all_s()

    def _all_s(self) -> float:
        """How long all workers together need for all that is left."""
        speed = sum(tally.speed for tally in self._speeds.values())
        return self._remaining_s() / speed if speed else inf

    def _pick(self, view: WorkerView, now_s: float) -> Choice | None:
        """The best task for this worker, if any is."""
        if self._unknown and (probe := self._probe()) is not None:
            return Choice(probe, view.worker, "probe")
        shelves = self._shelves
        mine = [shelves[home] for home in (view.worker, ANYWHERE, ROOTS) if home in shelves]
        outlook = self._outlook(view, now_s)
        entry = self._critical(view, outlook.all_s)
        if entry is not None and self._suits(entry, view, outlook, now_s):
            return Choice(entry.task, view.worker, "longest" if entry.is_last else "critical")
        if view.load.ahead_bytes > WAITING_BYTES:
            mine = [shelf for shelf in mine if shelf is not self._shelves.get(ROOTS)]
        # What goes on with something comes before what begins something: so less lies in memory.
        candidates = [entry for shelf in mine if (entry := shelf.first()) is not None]
        if len(candidates) > 1:
            candidates.sort(key=lambda each: (each.level, each.home == ROOTS, each.priority))
        for entry in candidates:
            if self._suits(entry, view, outlook, now_s):
                return Choice(entry.task, view.worker, "local" if entry.home is view.worker else "order")
        if outlook.faster_s < inf:
            limit_s = outlook.pool_s / view.factor
            candidates = [entry for shelf in mine if (entry := shelf.longest(limit_s)) is not None]
            for entry in sorted(candidates, key=lambda each: each.level):
                if self._suits(entry, view, outlook, now_s):
                    return Choice(entry.task, view.worker, "filler")
        return self._from_others(view, outlook, now_s)

    def _probe(self) -> Task | None:
        """A task of a kind of which nothing is known, of those that the user wants first."""
        first = min(self._places)
        for known, task in list(self._unknown.items()):
            level, kind = known
            if task not in self._entries or kind in self._tried:
                del self._unknown[known]
            elif level == first:
                del self._unknown[known]
                self._tried.add(kind)
                return task
        return None

    def _critical(self, view: WorkerView, all_s: float) -> Entry | None:
        """A task on which so long a path hangs that it cannot wait; or a long one that saves no memory by waiting."""
        level = min(self._places)
        steps = self._places[level]
        top = min(steps)
        if _most(top) < self.strategy.critical * all_s:
            top = min([step for step in steps if step & 1], default=0)
            if not top & 1 or _most(top) < self.strategy.longest * all_s:
                return None
        homes = steps[top]
        home = next((each for each in (view.worker, ANYWHERE, ROOTS) if each in homes), None)
        return self._shelves[next(iter(homes)) if home is None else home].head((level, top))

    def _from_others(self, view: WorkerView, outlook: Outlook, now_s: float) -> Choice | None:
        """A task that lies with its inputs on another worker, one of those with most to do."""
        most = (home for step in sorted(self._backlogs, reverse=True) for home in self._backlogs[step])
        for home in islice((home for home in most if home is not view.worker), TRIES):
            entry = self._shelves[home].first()
            if entry is not None and self._suits(entry, view, outlook, now_s):
                return Choice(entry.task, view.worker, "moved")
        return None

    def _suits(self, entry: Entry, view: WorkerView, outlook: Outlook, now_s: float) -> bool:
        """Whether the worker should take the task rather than leave it to others."""
        others_s = self._others_s(entry, view, outlook, now_s)
        if others_s is None:
            return True
        here_s = entry.cost.p50_s * view.factor
        entry.left_until_s = min(entry.left_until_s, now_s + self.strategy.patience * (others_s + here_s))
        return now_s > entry.left_until_s

    def _others_s(self, entry: Entry, view: WorkerView, outlook: Outlook, now_s: float) -> float | None:
        """How soon others do the task, to whom this worker had better leave it; None: it had better take it."""
        if entry.home in _NOWHERE and outlook.faster_s == inf:
            return None
        here_s = entry.cost.p50_s * view.factor
        home = self.views.get(entry.home)
        if home is not None and home is not view and self._is_open(home.worker):
            there_s = entry.cost.p50_s * home.factor + self._wait_s(home, now_s)
            away_s = self.strategy.gravity * self._transfer_s(entry.task, view.worker)
            if away_s > 0.0 and view.worker not in home.sends:
                away_s += max(home.sends_until_s - now_s, 0.0)
            if here_s + away_s >= there_s:
                return there_s
        if outlook.faster_s == inf or here_s <= outlook.pool_s:
            return None
        tail_s = entry.rank_s - entry.cost.p50_s
        if here_s + tail_s <= self.strategy.slack * outlook.faster_s:
            return None
        if home is view and (fastest := self._fastest()) is not None:  # who will not have it, if it is too far away
            there_s = entry.cost.p50_s * fastest.factor + self.strategy.gravity * self._transfer_s(
                entry.task, fastest.worker
            )
            return there_s if there_s < here_s else None
        return outlook.pool_s

    def _fastest(self) -> WorkerView | None:
        views = (view for step in sorted(self._speeds) for view in self._speeds[step].views.values())
        return next((view for view in views if self._is_open(view.worker) and view.load.held < view.load.threads), None)

    def _wait_s(self, view: WorkerView, now_s: float) -> float:
        """Until a worker has come to the tasks whose inputs it has: those that would have to wait there."""
        shelf = self._shelves.get(view.worker)
        backlog_s = 0.0 if shelf is None else shelf.seconds * view.factor / view.load.threads
        return backlog_s + self._free_in_s(view, now_s)

    def _free_in_s(self, view: WorkerView, now_s: float) -> float:
        """Until a thread is free; 0 where nobody knows."""
        free_s = view.load.free_in_s(now_s)
        return free_s if free_s < inf else 0.0

    def _outlook(self, view: WorkerView, now_s: float) -> Outlook:
        """How long all that is left will take, and how long the faster workers would take without this one."""
        step = view.step - view.unsure_steps - SLOWER_STEPS
        everyone = faster = ends_s = 0.0
        threads = given = 0
        for each, tally in self._speeds.items():
            everyone += tally.speed
            if each <= step:
                faster += tally.speed
                threads += tally.threads
                given += tally.given
                ends_s += tally.ends_s
        remaining_s = self._remaining_s()
        all_s = remaining_s / everyone if everyone else inf
        if not faster:
            return Outlook(all_s, inf, inf)
        return Outlook(all_s, remaining_s / faster, self._pool_s / faster + max(ends_s - given * now_s, 0.0) / threads)


SLOWER_STEPS = max(round(log2(SLOWER) * PER_OCTAVE), 1)


def _most(step: int) -> float:
    """Upper end of the ranks of such a place, in seconds."""
    return exp2((1 - (step >> 1)) / PER_OCTAVE)


def _step(value: float) -> int:
    """The place of a duration or factor on a scale with four steps to the octave."""
    return floor(log2(value) * PER_OCTAVE) if value > 1e-9 else -120
