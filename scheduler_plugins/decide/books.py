"""The books of placement: what is ready, which workers there are, and what these have.  PURE

They decide nothing; `placement` does, by what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler_plugins.decide.load import Given, Load
from scheduler_plugins.decide.shelves import ANYWHERE, ROOTS, Cost, Entry, Priority, Shelf, Task, Worker, step_of
from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.decide.views import Tally, WorkerView

MOST_TRIED = 10_000
"""Kinds of task that are remembered to have been tried."""
MOST_LEAD_S = 0.1
"""Most that the horizon is extended for transfers."""
LEAD_RATE = 0.1
"""Weight of the last transfer in the moving average."""


class Books:
    """The pool and the workers.

    Parameters
    ----------
    factor
        (task, worker) → duration there over that on an average worker.
    transfer_s
        (task, worker) → how long its inputs take to get there.
    """

    def __init__(
        self,
        *,
        factor: Callable[[Task, Worker], float],
        transfer_s: Callable[[Task, Worker], float],
        strategy: Strategy = DEFAULT,
    ) -> None:
        self._factor = factor
        self._transfer_s = transfer_s
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
            for entry in dict.fromkeys(each for line in shelf.lines.values() for _, _, each in line if each.is_ready):
                self._take_out(entry)
                entry.home = ANYWHERE
                self._shelve(entry)

    def hold(self, worker: Worker, threads: int, now_s: float) -> None:
        """So many of its threads are lost to tasks that are wanted no more."""
        if (view := self.views.get(worker)) is not None:
            view.lost = threads
            self._withhold(view, now_s)

    def rest(self, worker: Worker, threads: int, now_s: float) -> None:
        """So many of its threads are to have nothing to do; what runs there ends."""
        if (view := self.views.get(worker)) is not None:
            view.resting = threads
            self._withhold(view, now_s)

    def _withhold(self, view: WorkerView, now_s: float) -> None:
        threads = max(view.lost, view.resting)  # a thread that is lost does not make the host cooler
        if view.load.held != threads:
            self._count_speed(view, -1)
            view.load.hold(threads, now_s)
            self._count_speed(view, +1)
            self._hunger(view)

    def set_speed(self, worker: Worker, factor: float, doubt: float = 1.0) -> None:
        """Durations on this worker, over those on an average one; and the ratio by which that may well be wrong."""
        view = self.views.get(worker)
        if view is None:
            return
        view.unsure_steps = step_of(doubt)
        if view.factor != factor:
            self._count_speed(view, -1)
            was_hungry = view.is_hungry
            self._feed(view)
            view.factor = factor
            view.step = step_of(factor)
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
        threads = view.load.threads - view.load.held
        tally.threads += sign * threads
        tally.speed = tally.speed + sign * threads / view.factor if tally.threads else 0.0
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
        steps = self._places.get(level)
        if steps is None:
            steps = self._places[level] = {}
        homes = steps.get(step)
        if homes is None:
            homes = steps[step] = {}
        homes[home] = homes.get(home, 0) + 1
        shelf.count += 1
        shelf.seconds += entry.cost.p50_s
        self._pool_s += entry.cost.p50_s
        if home is not ROOTS:
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
        if home is not ROOTS:
            self._weigh(home, shelf)
        if not shelf.count:
            del self._shelves[home]
            self._at_home.pop(home, None)

    def _weigh(self, home: Worker, shelf: Shelf) -> None:
        """Keep the workers sorted by how much there is to do for which they have the inputs."""
        view = self.views.get(home)
        step = None if view is None or not shelf.count else step_of(shelf.seconds) + view.step
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
        if entry is not None and -step_of(max(rank_s, 1e-9)) != entry.place[1] >> 1:
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
        entry.place = (level, -2 * step_of(entry.rank_s) + entry.is_last)
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
        view = self.views.get(worker)
        tail_s = input_bytes = transfer_s = 0.0
        if entry is None:
            known = cost(task)
        else:
            known, input_bytes = entry.cost, entry.input_bytes
            tail_s = entry.rank_s - known.p50_s
            if input_bytes:
                transfer_s = self._transfer_s(task, worker)
                if transfer_s > 0.0 and view is not None and (home := self.views.get(entry.home)) is not None:
                    home.send(worker, transfer_s, now_s)
            self.unready(task)
        if view is None:
            return
        factor = self._factor(task, worker)
        nbytes = known.output_bytes + input_bytes
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

    def backlog_s(self) -> float:
        """How long all workers together need for what is ready; 0 when nothing is."""
        speed = sum(tally.speed for tally in self._speeds.values())
        return self._pool_s / speed if self._entries and speed else 0.0

    @property
    def planned_s(self) -> float:
        """How long before a thread is free a worker may be sent a task."""
        return self.strategy.horizon_s + self._lead_s
