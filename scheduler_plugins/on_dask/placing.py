"""Placement on Dask's scheduler: ready tasks wait in our pool, in Dask's own state "queued".

Dask asks four things of its scheduler that decide over placement; this answers them on the instance, and gives Dask its
own answers back when it is taken out. Tasks that Dask alone may place (restrictions, resources, actors, P2P shuffles)
never come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from math import inf, isinf
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from distributed.stealing import WorkStealing

from scheduler_plugins.decide.balance import overdue
from scheduler_plugins.decide.lateness import Lateness
from scheduler_plugins.decide.load import Given
from scheduler_plugins.decide.placement import LOCAL_RATIO, Choice, Placement
from scheduler_plugins.decide.ranks import Ranks
from scheduler_plugins.decide.shelves import ANYWHERE, ROOTS, Cost
from scheduler_plugins.decide.speculate import SLOWED
from scheduler_plugins.decide.views import WorkerView
from scheduler_plugins.on_dask.ranking import ENOUGH, Ranking
from scheduler_plugins.on_dask.recalls import Recalls

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.on_dask.estimates import Estimate, Estimates
    from scheduler_plugins.on_dask.why import Recall

Key = Any

MOST_INPUTS, MOST_HOLDERS = 64, 8
"""Inputs of a task, and holders of one input, that are looked at."""
ELSEWHERE = "elsewhere"
"""Stands for any other worker."""
LOOKS = 200
"""Workers that are looked at in one go."""
SILENT_S = 3.0
"""A worker that was not heard of for so long may run what it was given, or not."""
MANY = 8
"""Tasks of a group from which on it is worth to try one first."""
FIRST = -1
"""Generation, in Dask's priority, of a task that goes before those that wait on its worker."""
LONG_S, NOTHING_S = 0.05, 0.005
RANKED_OFF = 1.5
"""Ratio by which a task's duration may be off in the ranks."""
SHORT_S = 0.01
"""Of tasks that take less it does not matter how late one hears of each: many are on the way at a time."""
LAG_RATE = 0.1
"""Weight of the last task in the moving average of the lag."""
OVER = frozenset(("memory", "forgotten", "erred"))

_HOOKS = ("is_rootish", "decide_worker_rootish_queuing_enabled", "stimulus_queue_slots_maybe_opened")


class _NeverIdle(set[Any]):
    """Stands in for Dask's set of workers with room, so that its own rule never gives one a task."""

    def add(self, element: Any) -> None:
        pass


class _Saved(NamedTuple):
    """What of Dask's was replaced."""

    saturation: float


class Placing:
    """Answers for Dask's scheduler which task goes where.

    Parameters
    ----------
    on_choice
        Is told each choice as it is carried out, with the time.
    on_recall
        As `Recalls` tells.
    fits
        Whether a worker may be given a task now.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        estimates: Estimates,
        on_failure: Callable[[Exception], None],
        on_choice: Callable[[Choice, float], None],
        on_recall: Callable[[Recall, TaskState, WorkerState], None],
        fits: Callable[[TaskState, WorkerState], bool],
    ) -> None:
        self.scheduler = scheduler
        self.estimates = estimates
        self._on_failure = on_failure
        self._on_choice = on_choice
        self._on_recall = on_recall
        self._fits = fits
        self._saved: _Saved | None = None
        self._assigned: WorkerState | None = None
        self._is_due = False
        self._is_filling = False
        self._timer: TimerHandle | None = None
        self._wakes_at_s: float | None = None
        self.repaired = 0
        """Tasks that were thought to run where Dask did not have them: 0, unless something is wrong."""
        self.lag_s = 0.0
        """Moving average of how much later than a task's end this hears of it: what runs may long have ended."""
        self.worked_s = 0.0
        """Seconds that all tasks have run that have ended."""
        self.done_s = 0.0
        """And what they would have run on workers of average speed."""
        self._round: Iterator[WorkerState] = iter(())
        self.lateness = Lateness()
        self._mean_s = 0.0
        """Moving average of what tasks take that are not short."""
        self.suspected: Collection[WorkerState] = ()
        """Workers that are silent, by whoever watches heartbeats."""
        self._estimate: Estimate | None = None
        """The last of which the cost was asked."""
        self._cost: Cost
        self.late_ratio = 1.0
        """Of its p99, from which on a running task counts as late."""
        self.leaving: Collection[WorkerState] = ()
        """Workers that will soon be gone, by whoever drains them."""

    @property
    def is_installed(self) -> bool:
        return self._saved is not None

    # -- in and out ------------------------------------------------------------------------------------------------

    async def install(self) -> None:
        """Take over, with all the tasks and workers that the scheduler has."""
        scheduler: Any = self.scheduler
        await self._stop_stealing()
        self.ranks = Ranks(
            self._seconds,
            lambda task, rank_s: self.placement.rank(task, rank_s, self.cost),
            lambda task: task.state in OVER,
        )
        self.ranking = Ranking(self.scheduler, self.ranks, self._call_soon, self._on_failure)
        self.placement = Placement(
            factor=self.estimates.factor,
            transfer_s=self.transfer_s,
            remaining_s=lambda: self.ranks.remaining_s,
            is_open=self._is_open,
            fits=self._may_have,
        )
        for worker in scheduler.workers.values():
            self._join(worker)
        self.recalls = Recalls(scheduler, self._on_recall)
        self._seceded = scheduler.stream_handlers["long-running"]
        scheduler.stream_handlers["long-running"] = self._on_seceded
        self._saved = _Saved(scheduler.WORKER_SATURATION)
        if isinf(scheduler.WORKER_SATURATION):
            scheduler.WORKER_SATURATION = 1.1
        scheduler.idle_task_count = _NeverIdle()
        scheduler.is_rootish = self._takes
        scheduler.decide_worker_rootish_queuing_enabled = self._decide
        scheduler.stimulus_queue_slots_maybe_opened = self._fill
        now_s = time.time()
        self.ranking.start(list(scheduler.tasks.values()))
        for task in scheduler.tasks.values():
            if task.state == "queued":
                self._ready(task)
            elif task.state == "processing":
                self.placement.given(task, task.processing_on, now_s, self.cost)
                if task in task.processing_on.long_running:
                    self.placement.seceded(task, now_s)
        self._call_soon()

    def uninstall(self) -> None:
        """Give Dask its own answers back, and let it place what waits."""
        if self._saved is None:
            return
        scheduler: Any = self.scheduler
        for hook in _HOOKS:
            vars(scheduler).pop(hook, None)
        scheduler.WORKER_SATURATION = self._saved.saturation
        self._saved = None
        if self._timer is not None:
            self._timer.cancel()
        self.ranking.stop()
        scheduler.stream_handlers["long-running"] = self._seceded
        scheduler.idle_task_count = set()
        for worker in scheduler.workers.values():
            scheduler.check_idle_saturated(worker)
        scheduler.loop.asyncio_loop.call_soon(self._hand_over)
        self._start_stealing()
        self.recalls.uninstall()

    async def _stop_stealing(self) -> None:
        """Dask's work stealing moves tasks that wait on workers; few do now, and it costs a twentieth of a task."""
        scheduler: Any = self.scheduler
        stealing = scheduler.extensions.get("stealing")
        for name, plugin in list(scheduler.plugins.items()):
            if plugin is stealing:
                await stealing.stop()
                scheduler.remove_plugin(name)

    def _start_stealing(self) -> None:
        scheduler = self.scheduler
        if "stealing" in scheduler.extensions and not isinstance(scheduler.extensions["stealing"], WorkStealing):
            return
        if "stealing" in scheduler.extensions and dask.config.get("distributed.scheduler.work-stealing"):
            stealing = scheduler.extensions["stealing"] = WorkStealing(scheduler)
            scheduler._ongoing_background_tasks.call_soon(stealing.start)

    def _hand_over(self) -> None:
        """Let Dask's own rules place what waited for ours, and that they would not have queued."""
        scheduler: Any = self.scheduler
        never = isinf(scheduler.WORKER_SATURATION)
        others = [task for task in scheduler.queued if never or not scheduler.is_rootish(task)]
        others.sort(key=lambda task: task.priority, reverse=True)  # Dask begins with the last
        scheduler.transitions({task.key: "released" for task in others}, "swarm-handed-over")
        scheduler.stimulus_queue_slots_maybe_opened(stimulus_id="swarm-handed-over")

    def recover(self) -> None:
        """Something has failed: what waits in Dask's queue and was lost on the way here, is ready again."""
        for task in list(self.scheduler.queued):
            if task not in self.placement:
                self._ready(task)
        self._call_soon()

    def _on_seceded(self, *, key: Key, **message: Any) -> None:
        """In place of `handle_long_running`: a task has left its thread, which others may have now."""
        self._seceded(key=key, **message)
        try:
            task = self.scheduler.tasks.get(key)
            if task is not None and task.processing_on is not None and task in task.processing_on.long_running:
                self.placement.seceded(task, time.time())
                self._call_soon()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)

    # -- Dask's plugin hooks, by way of the plugin -----------------------------------------------------------------

    def add_worker(self, worker: WorkerState) -> None:
        if worker not in self.placement.views:
            self._join(worker)
            self._call_soon()

    def _is_open(self, worker: WorkerState) -> bool:
        """Whether a worker may be given tasks: Dask says so, and it answers."""
        return worker in self.scheduler.running and worker not in self.leaving and not self.recalls.is_silent(worker)

    def _may_have(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a worker may be given a task now: what cannot be taken back any more must not wait there."""
        if self.recalls.is_spent(task) and self.placement.views[worker].load.free_threads <= 0:
            return False
        return self._fits(task, worker)

    def _join(self, worker: WorkerState) -> None:
        self.placement.join(worker, worker.nthreads)
        self._rate(worker)

    def _rate(self, worker: WorkerState) -> None:
        """Say how much a worker takes for a task: its speed, and how late one hears of what it has done."""
        factor, doubt = self.estimates.worker_factor(worker)
        if (late_s := self.lateness.excess_s.get(worker)) is not None:
            factor *= 1.0 + late_s / max(self._mean_s, SHORT_S)
        self.placement.set_speed(worker, factor, doubt)

    def remove_worker(self, address: str) -> None:
        gone = next((worker for worker in self.placement.views if worker.address == address), None)
        if gone is not None:
            self.recalls.worker_left(gone)
            self.lateness.left(gone)
        self.placement.leave(gone)
        self._call_soon()

    def update_graph(self, tasks: Collection[Key]) -> None:
        known = self.scheduler.tasks
        arrived = [known[key] for key in tasks if key in known]
        self.ranking.arrived([task for task in arrived if task.dependencies or task.dependents])

    def transition(self, task: TaskState, start: str, finish: str, took_s: float | None = None) -> None:
        """After each transition of a task; `finish` is where it ended up, `took_s` the seconds that it ran."""
        if finish == "queued":
            self._ready(task)
            self._call_soon()
        elif finish == "processing":
            if start != "processing":
                self.placement.given(task, task.processing_on, time.time(), self.cost)
        elif start == "processing":
            self._ended(task, finish, took_s)
        elif start == "queued":
            self.placement.unready(task)
        if finish in OVER:
            self.ranks.drop(task)
            self.recalls.forget(task)

    def _ended(self, task: TaskState, finish: str, took_s: float | None) -> None:
        now_s = time.time()
        view = self.placement.view(task)
        given = self.placement.ended(task, now_s)
        self.ranking.ended()
        if finish != "memory":
            self.estimates.stopped(task)
        elif given is not None and view is not None and took_s is not None:
            self.worked_s += took_s
            self.done_s += took_s / view.factor
            if took_s > LONG_S:  # for short ones, every `look` is often enough
                self._rate(view.worker)
            if given.started_at_s is not None:
                self.lag_s += LAG_RATE * (max(now_s - given.started_at_s - took_s, 0.0) - self.lag_s)
            if not self._is_as_thought(task, given, took_s):
                self.ranking.surprised()

    def _is_as_thought(self, task: TaskState, given: Given, took_s: float) -> bool:
        """Whether it took about as long as was predicted, and paths are about as long as they were thought to be."""
        if not given.is_known:
            return False
        if took_s <= NOTHING_S and given.p99_s + given.tail_s <= NOTHING_S:
            return True  # that short, nothing else can come out
        least_s = given.p50_s * given.p50_s / given.p99_s - NOTHING_S
        return least_s <= took_s <= given.p99_s + NOTHING_S and self._is_ranked_so(task)

    def reported(self, worker: WorkerState, took_s: float, stopped_s: float) -> None:
        """A task that took so long has ended there at that time; one hears of it now."""
        if took_s > SHORT_S:
            self._mean_s += LAG_RATE * (took_s - self._mean_s)
            self.lateness.reported(worker, time.time() - stopped_s)

    def _is_ranked_so(self, task: TaskState) -> bool:
        """Whether paths are about as long as they were thought to be when the task was ranked."""
        ranked_s, known_s = self.ranks.seconds(task), self.estimates.of(task).p50_s
        return ranked_s < RANKED_OFF * known_s + NOTHING_S and known_s < RANKED_OFF * ranked_s + NOTHING_S

    def hold_back(self, task: TaskState) -> None:
        """A ready task may not run yet."""
        self.placement.unready(task)

    def rest(self, worker: WorkerState, threads: int) -> bool:
        """So many threads of a worker are to have nothing to do. Whether that is new."""
        view = self.placement.views.get(worker)
        if view is None or view.resting == threads:
            return False
        self.placement.rest(worker, threads, time.time())
        self._call_soon()
        return True

    def let_go(self, task: TaskState) -> None:
        """It may."""
        self._ready(task)
        self._call_soon()

    def look(self) -> list[tuple[Given, WorkerState]]:
        """What time alone shows: running tasks that should have ended, waiting tasks that cannot start. Every 0.1 s.

        Returns the running tasks that have taken longer than all but a few should, or that run on a slow worker while
        a faster one has nothing to do.
        """
        now_s = time.time()
        late: list[tuple[Given, WorkerState]] = []
        views = self.placement.views
        idle = None if len(self.placement) else next(self.placement.spare(), None)
        idle_factor = inf if idle is None else views[idle].factor
        workers = list(islice(self._round, LOOKS))
        if len(workers) < LOOKS:
            self._round = iter(list(views))
            workers += islice(self._round, LOOKS - len(workers))
        self.lateness.look(now_s)
        for worker in dict.fromkeys(workers):
            view = views.get(worker)
            if view is not None:
                late += self._look_at(view, now_s, idle_factor)
        if self.ranks.is_stale:
            self.ranking.surprised(ENOUGH)
        self.recalls.insist(now_s)
        self.placement.reconsider()
        self._fill()
        return late

    def _look_at(self, view: WorkerView, now_s: float, idle_factor: float) -> list[tuple[Given, WorkerState]]:
        worker, late = view.worker, []
        for task in [task for task in view.load.running if task.processing_on is not worker]:
            self.repaired += 1  # it left without a transition, and nobody has said so
            self.placement.ended(task, now_s)
        view.load.settle(now_s)
        self.placement.look_again(worker)
        for given in view.load.running.values():
            if given.fetch_s > 0.0:
                self._hear(given, worker, now_s)
            elapsed_s = now_s - (given.started_at_s or now_s) - self.lag_s
            if not given.is_known:
                self._know(given, worker, elapsed_s)
            if elapsed_s > given.p50_s:
                self.estimates.running_for(given.task, worker.address, elapsed_s)
            if view.factor > SLOWED * idle_factor or (given.is_known and elapsed_s > self.late_ratio * given.p99_s):
                late.append((given, worker))
        self._rate(worker)
        for task in self._back(view, now_s):
            self.recalls.ask(task, worker, now_s)
        return late

    def _back(self, view: WorkerView, now_s: float) -> list[TaskState]:
        """Tasks that a worker should not have."""
        if view.worker in self.leaving:
            return [*view.load.waiting, *view.load.fetching]
        if view.worker in self.scheduler.running:
            return overdue(view.load, now_s, self.placement.planned_s)
        if view.worker in self.suspected:  # it may just be busy: what runs is left alone, or copied
            return [*view.load.waiting, *view.load.fetching]
        return view.load.tasks()

    def _hear(self, given: Given, worker: WorkerState, now_s: float) -> None:
        """A task that had to fetch inputs may not have begun when it was thought to: the heartbeat says what runs."""
        ran_s = worker.executing.get(given.task)
        if ran_s is not None:
            given.started_at_s = max(worker.last_seen - ran_s, given.sent_at_s)
        elif now_s - worker.last_seen < SILENT_S:
            given.started_at_s = max(given.started_at_s or now_s, now_s - given.p50_s / 2)

    def _know(self, given: Given, worker: WorkerState, elapsed_s: float) -> None:
        """Its function was unknown when the task was sent; others may have ended since, or it shows as it runs."""
        factor = self.estimates.factor(given.task, worker)
        if self.estimates.is_longer(given.task, elapsed_s / factor):
            self.ranking.surprised(ENOUGH)
        known = self.estimates.of(given.task)
        given.p50_s, given.p99_s, given.is_known = known.p50_s * factor, known.p99_s * factor, known.samples > 0

    # -- what Dask asks ----------------------------------------------------------------------------------------------

    def _takes(self, task: TaskState) -> bool:
        """In place of `is_rootish`: whether the task is to wait in the pool."""
        return not (
            task.resource_restrictions or task.worker_restrictions or task.host_restrictions or task.actor
        ) and bool(task._queueable)

    def _decide(self) -> WorkerState | None:
        """In place of `decide_worker_rootish_queuing_enabled`: None sends a task to the pool."""
        return self._assigned

    def _fill(self, *, stimulus_id: str = "swarm-fill") -> None:
        """In place of `stimulus_queue_slots_maybe_opened`: give workers with room their next tasks."""
        now_s = time.time()
        if self._is_filling or not self.placement.is_due(now_s) or self.ranking.holds:
            return
        self._is_filling = True
        scheduler = self.scheduler
        try:
            for choice in self.placement.choices(now_s):
                task, self._assigned = choice.task, choice.worker
                if choice.rule == "critical" and self.placement.views[choice.worker].load.waiting:
                    task.priority = (task.priority[0], FIRST, *task.priority[2:])
                given = (task, *choice.more)
                try:  # Dask begins with the last
                    scheduler.transitions({each.key: "processing" for each in reversed(given)}, stimulus_id)
                finally:
                    self._assigned = None
                for each in given:
                    if each in self.placement:  # Dask did not follow; it must not be chosen again and again
                        self.placement.unready(each)
                self._on_choice(choice, now_s)
                if not self.is_installed:  # something failed meanwhile, and Dask decides again
                    return
            self._set_timer(now_s)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        finally:
            self._is_filling = False

    def _set_timer(self, now_s: float) -> None:
        at_s = self.placement.wake_at_s()
        if at_s == self._wakes_at_s and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakes_at_s = at_s
        if at_s is not None:
            loop = self.scheduler.loop.asyncio_loop  # type: ignore[attr-defined]
            self._timer = loop.call_later(max(at_s - now_s, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._fill()

    def _call_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self.scheduler.loop.asyncio_loop.call_soon(self._on_due)  # type: ignore[attr-defined]

    def _on_due(self) -> None:
        self._is_due = False
        if self._saved is not None:
            self._fill()

    # -- what is known of tasks ------------------------------------------------------------------------------------

    def _seconds(self, task: TaskState) -> float:
        return self.estimates.of(task).p50_s

    def cost(self, task: TaskState) -> Cost:
        known = self.estimates.of(task)
        if known is self._estimate:
            return self._cost
        kind = None if known.samples or len(task.group) < MANY else task.prefix
        cost = Cost(known.p50_s, known.p99_s, known.samples > 0, known.output_bytes or 0.0, kind)
        if known.samples:  # tasks alike share an estimate
            self._estimate, self._cost = known, cost
        return cost

    def _ready(self, task: TaskState) -> None:
        assert task.priority is not None
        cost = self.cost(task)
        home, input_bytes, rank_s = ROOTS, 0.0, cost.p50_s
        if task.dependencies:
            home, input_bytes = self._home(task, cost.p50_s)
        if task.dependencies or task.dependents:
            if task not in self.ranks and not self.ranking.is_under_way:
                self.ranking.start([task])
            rank_s = self.ranks.rank_s(task)
        else:
            self.ranks.alone(task, rank_s)
        self.placement.ready(task, task.priority, cost, rank_s, home, input_bytes, is_last=not task.dependents)

    def _home(self, task: TaskState, seconds: float) -> tuple[Any, float]:
        """The worker with most of a task's inputs, where getting them elsewhere takes a while; and their bytes."""
        held: dict[WorkerState, int] = {}
        total = 0
        for need in islice(task.dependencies, MOST_INPUTS):
            size = need.get_nbytes()
            total += size
            for worker in islice(need.who_has or (), MOST_HOLDERS):
                held[worker] = held.get(worker, 0) + size
        if not held:
            return ANYWHERE, total
        home = max(held, key=held.__getitem__)
        away_s = self.estimates.transfer_s(held[home], home.address, ELSEWHERE)
        return (ANYWHERE if away_s < LOCAL_RATIO * seconds else home), total

    def transfer_s(self, task: TaskState, worker: WorkerState) -> float:
        lacking, source = 0, None
        for need in islice(task.dependencies, MOST_INPUTS):
            if need.who_has and worker not in need.who_has:
                lacking += need.get_nbytes()
                source = source or next(iter(need.who_has))
        return self.estimates.transfer_s(lacking, source.address, worker.address) if source is not None else 0.0
