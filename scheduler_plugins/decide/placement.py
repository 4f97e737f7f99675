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

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from math import inf, log2
from typing import NamedTuple

from scheduler_plugins.decide.books import MOST_LEAD_S, Books
from scheduler_plugins.decide.load import FETCH_S, PER_TASK_S
from scheduler_plugins.decide.shelves import ANYWHERE, NOWHERE, PER_OCTAVE, ROOTS, Cost, Entry, Task, Worker, highest_s
from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.decide.views import WorkerView

SLOWER = 1.3
"""Ratio of durations from which on a worker counts as slower than another: speeds are learned from noisy durations."""
SLOWER_STEPS = max(round(log2(SLOWER) * PER_OCTAVE), 1)
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
BRIEF_S = 0.005
"""Tasks that are known to take less than this are given several at a time."""
LOCAL_RATIO = 0.05
"""Share of its duration that the transfer of a task's inputs must take for them to decide where it goes."""
LOOKS = 16
"""Tasks that may not fit on a worker before it is left idle."""


class Choice(NamedTuple):
    """A task goes to a worker."""

    task: Task
    worker: Worker
    rule: str
    """Why: "probe" (the first of its kind: many will follow), "critical", "longest" (of those that nothing waits for),
    "order", "local", "moved" (away from its inputs), "filler" (the best for a slow worker) or "prefetch" (its inputs
    can come while the worker is busy)."""
    more: Sequence[Task] = ()
    """Short ones that come next, and go along."""


class Outlook(NamedTuple):
    """How things stand for one worker; seconds, infinite where there is no faster worker."""

    all_s: float
    """For all workers to do all that is left."""
    faster_s: float
    """For the faster ones to do it."""
    pool_s: float
    """For the faster ones to end what they have and then what is ready."""


def _anything(task: Task, worker: Worker) -> bool:  # noqa: ARG001 - the default of `Placement.fits`
    return True


class Placement(Books):
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
        super().__init__(factor=factor, transfer_s=transfer_s, strategy=strategy)
        self._remaining_s = remaining_s
        self._is_open = is_open
        self._fits = fits
        self._misfits: list[WorkerView] = []
        """Workers with room that nothing fitted on."""
        self._alarms: list[tuple[float, int, Worker]] = []
        """When workers will have room that have none now."""

    def spare(self) -> Iterator[Worker]:
        """Workers with an idle thread for which there is nothing to do, the fastest first."""
        for step in sorted(self._hungry):
            for worker, view in self._hungry[step].items():
                if view.load.free_threads > len(view.load.fetching) and self._is_open(worker):
                    yield worker

    def is_due(self, now_s: float) -> bool:
        """Whether there may be anything to be given now."""
        alarms = self._alarms
        return bool(self._entries and (self._hungry or (alarms and alarms[0][0] <= now_s)))

    def choices(self, now_s: float) -> Iterator[Choice]:
        """What is to be given now. Each is to be carried out (`given`) before the next is asked for."""
        alarms = self._alarms
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
        elif choice is not None and choice.rule in ("order", "moved"):
            choice = self._with_more(choice, view, now_s)
        return choice

    def _with_more(self, choice: Choice, view: WorkerView, now_s: float) -> Choice:
        """Of short tasks that begin something, a worker is given as many as it has room for: each would be next.

        So it is, and further ahead, of those that have to fetch inputs for a good part of the time that they take: a
        worker fetches from another once at a time, and for ten tasks that takes little longer than for each of them.
        Where there is not twice as much for everybody, they go one by one: so all are done at about the same time.
        """
        load, entry = view.load, self._entries[choice.task]
        if view.resting:
            return choice
        if entry.home is ROOTS:
            if load.free_threads > 0 or load.fetching or self._unknown or not self._is_brief(entry.cost, view, BRIEF_S):
                return choice
            ahead_s, brief_s = self.planned_s, BRIEF_S
        else:
            if not self._is_brief(entry.cost, view, SHORT_S):
                return choice
            if self._transfer_s(entry.task, view.worker) <= LOCAL_RATIO * entry.cost.p50_s:
                return choice
            ahead_s, brief_s = self.planned_s + MOST_LEAD_S, SHORT_S
        shelf = self._shelves[entry.home]
        most = min(shelf.count // (2 * len(self.views)), MOST_WAITING * load.threads - len(load.waiting))
        room_s = (ahead_s - load.free_in_s(now_s)) * (load.threads - load.held)
        if entry.home is ROOTS and room_s > most * (entry.cost.p50_s * view.factor + PER_TASK_S):
            return choice
        room_bytes = WAITING_BYTES - load.ahead_bytes
        more: list[Task] = []
        last = entry
        for other in shelf.following(entry, most):
            room_s -= last.cost.p50_s * view.factor + PER_TASK_S
            room_bytes -= last.cost.output_bytes + last.input_bytes
            last = other
            if room_s < 0.0 or room_bytes < 0.0 or not self._is_brief(last.cost, view, brief_s):
                break
            if not self._fits(other.task, view.worker):
                break
            more.append(other.task)
        return choice._replace(more=more) if more else choice

    @staticmethod
    def _is_brief(cost: Cost, view: WorkerView, brief_s: float) -> bool:
        return cost.is_known and cost.p99_s * view.factor <= brief_s

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
        """A task for the worker to fetch the inputs of while it is busy.

        One that lies here with most of them; or, where nothing does and nothing may go anywhere, one from elsewhere.
        """
        load, shelves = view.load, self._shelves
        shelf = shelves.get(view.worker)
        entry = None if shelf is None else shelf.first()
        if entry is None:
            if not self._is_plenty or len(load.fetching) >= load.threads or any(home in shelves for home in NOWHERE):
                return None
            choice = self._from_others(view, self._outlook(view, now_s), now_s)
            if choice is None:
                return None
            entry = self._entries[choice.task]
        fetch_s = self._transfer_s(entry.task, view.worker)
        if fetch_s > FETCH_S and len(load.fetching) < load.threads:
            early_s = load.free_in_s(now_s) - max(fetch_s, MOST_LEAD_S) - self.planned_s
            if early_s <= 0.0:
                return Choice(entry.task, view.worker, "prefetch")
            self._wake(view, now_s + early_s)
        if fetch_s <= FETCH_S and load.free_threads > 0:
            return Choice(entry.task, view.worker, "local")
        return None

    @property
    def _is_plenty(self) -> bool:
        """Whether there is twice as much as workers: who takes more than one now keeps nobody from work."""
        return len(self._entries) >= 2 * len(self.views)

    def _wake(self, view: WorkerView, at_s: float) -> None:
        """Ask it then, should it not be asked before."""
        if at_s < view.wakes_at_s:
            view.wakes_at_s = at_s
            self._serial += 1
            heappush(self._alarms, (at_s + 1e-4, self._serial, view.worker))

    def wake_at_s(self) -> float | None:
        """When `choices` is worth asking again, though nothing has happened."""
        return self._alarms[0][0] if self._alarms and self._entries else None

    def _has_room(self, view: WorkerView, now_s: float) -> bool:
        load = view.load
        if load.fetching:
            load.settle(now_s)
        if len(load.fetching) >= load.threads:  # they will need the threads as soon as their inputs are there
            if self._is_plenty:
                self._wake(view, min(given.arrives_at_s for given in load.fetching.values()))
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
        if not load.waiting:
            self._wake(view, now_s + soon_s)
        return False

    def _is_reserved(self, view: WorkerView) -> bool:
        """Whether nothing may wait there.

        It runs a task whose end lets a path go on that decides over the end of all; or it has run too few tasks for
        anybody to know when it will be free; or some of its threads are to rest, which would begin at once what waits.
        """
        if view.resting:
            return True
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
        if highest_s(top) < self.strategy.critical * all_s:
            top = min([step for step in steps if step & 1], default=0)
            if not top & 1 or highest_s(top) < self.strategy.longest * all_s:
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
        if entry.home in NOWHERE and outlook.faster_s == inf:
            return None
        here_s = entry.cost.p50_s * view.factor
        home = self.views.get(entry.home)
        if home is not None and home is not view and home.load.held < home.load.threads and self._is_open(home.worker):
            there_s = entry.cost.p50_s * home.factor + self._wait_s(home, now_s)
            away_s = self.strategy.gravity * self._transfer_s(entry.task, view.worker)
            if away_s > 0.0 and view.worker not in home.sends:
                away_s += max(home.sends_until_s - now_s, 0.0)
            if here_s + max(away_s, self._free_in_s(view, now_s)) >= there_s:
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
