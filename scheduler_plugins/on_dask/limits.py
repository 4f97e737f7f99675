"""Limits of tasks on Dask's scheduler: what has run too long is taken from its worker, and tried elsewhere.

Dask numbers the runs of a task, so whatever the run that was taken away still sends is stale by its own rule
(`Scheduler.stimulus_task_finished`). Its thread can't be stopped: it counts as lost until heartbeats no longer list the
task (`HeldThreads`), and a worker of which all threads are lost is restarted by its nanny.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.limits import ANNOTATIONS, Attempt, Limits, read
from scheduler_plugins.on_dask.failing import fail
from swarm.config import one_line
from swarm.errors import SettingsError, TaskTimeoutError

if TYPE_CHECKING:
    from random import Random

    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState
    from structlog.stdlib import BoundLogger

    from scheduler_plugins.decide.limits import Limit
    from scheduler_plugins.on_dask.held import HeldThreads

Key = Any

ONCE = "swarm_once"
"""Annotation of tasks that must not run twice."""
LOST_S = 10.0
"""All threads of a worker must be lost for so long before it is restarted: one may still come back."""
FRESH_S = 0.1
"""A heartbeat that arrives so long after a task was sent lists it if it runs."""
SHOWN = 5
"""Tries that an error lists."""


class TaskLimits:
    """Watches how long tasks run.

    Parameters
    ----------
    held
        Counts the threads that are lost.
    began_s
        (task, worker) → since when it probably runs there, by the clock of `time.time`; None: it waits. Asked where
        the worker has not been heard of since it was sent the task.
    let_go
        Is told of each task that has rested, and may be sent to a worker again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        default: Limit,
        held: HeldThreads,
        rng: Random,
        log: BoundLogger,
        *,
        began_s: Callable[[TaskState, WorkerState], float | None],
        let_go: Callable[[TaskState], None],
    ) -> None:
        self._scheduler: Any = scheduler
        self._held = held
        self._log = log
        self._began_s = began_s
        self._let_go = let_go
        self._default = default
        self._limits = Limits(default, rng)
        self.is_asked_for = self._limits.is_asked_for
        """Whether any task has a limit; else neither `transition` nor `may_run` nor `rests` need be called."""
        self._failing: dict[Key, SettingsError] = {}
        self._retries: dict[TaskState, int] = {}
        """Of tasks that rest after errors: how many Dask had left when they were sent to a worker."""
        self._lost_since_s: dict[WorkerState, float] = {}

    # -- in and out ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        self._dasks_valid_workers = self._scheduler.valid_workers
        self._scheduler.valid_workers = self._valid_workers
        self.update_graph(list(self._scheduler.tasks))
        for task in list(self._scheduler.tasks.values()):
            if task.state == "processing":
                self._limits.given(task, task.processing_on, time.time())

    def uninstall(self) -> None:
        """Give Dask its own answer back; whoever rests need rest no more."""
        if vars(self._scheduler).get("valid_workers") == self._valid_workers:
            del self._scheduler.valid_workers
        stuck = {task.key: "processing" for task in list(self._scheduler.unrunnable)}
        self._scheduler.transitions(stuck, "swarm-limits-off")

    # -- asked by whoever places tasks -----------------------------------------------------------------------------

    def may_run(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a task may run there."""
        return self._limits.may_run(task, worker, self._scheduler.running)

    def rests(self, task: TaskState) -> bool:
        """Whether a ready task may not run anywhere yet."""
        return self._limits.rests(task, time.time())

    def _valid_workers(self, task: TaskState) -> set[WorkerState] | None:
        """In place of `Scheduler.valid_workers`, for the tasks that Dask places."""
        found: set[WorkerState] | None = self._dasks_valid_workers(task)
        if self._limits.rests(task, time.time()):
            return set()
        candidates = self._scheduler.running if found is None else found
        allowed = {worker for worker in candidates if self._limits.may_run(task, worker, candidates)}
        return found if len(allowed) == len(candidates) else allowed

    # -- Dask's plugin hooks, by way of the plugin -----------------------------------------------------------------

    def update_graph(self, tasks: Collection[Key]) -> None:
        """Read what the tasks ask for. What asks for nonsense fails, whether or not it is ready."""
        known = self._scheduler.tasks
        for key in tasks:
            task = known.get(key)
            if task is None or not task.annotations or ANNOTATIONS.keys().isdisjoint(task.annotations):
                continue
            self.is_asked_for = True
            try:
                self._limits.set_limit(task, read(task.annotations, self._default))
            except SettingsError as error:
                self._limits.hold_back(task)
                self._failing[key] = error

    def _fail_malformed(self) -> None:
        failing, self._failing = self._failing, {}
        for key, error in failing.items():
            task = self._scheduler.tasks.get(key)
            if task is not None and task.state not in ("memory", "erred", "forgotten"):
                fail(self._scheduler, task, SettingsError(one_line(f"annotation of task {key!r}: {error}")))

    def transition(self, task: TaskState, start: str, finish: str) -> None:
        if finish == "processing":
            assert task.processing_on is not None
            self._limits.given(task, task.processing_on, time.time())
            if self._limits.limit(task).rests_after_errors:
                self._retries[task] = task.retries
            return
        retries = self._retries.pop(task, 0)
        if finish in ("memory", "erred"):
            self._limits.ended(task)
        elif finish == "forgotten":
            self._limits.forget(task)
        elif task.retries < retries:  # it has raised, and Dask tries again
            self._limits.erred(task, time.time())

    def remove_worker(self, worker: WorkerState) -> None:
        self._limits.worker_left(worker)
        self._lost_since_s.pop(worker, None)

    def look(self) -> None:
        """What time alone shows."""
        self._fail_malformed()
        self.is_asked_for = self._limits.is_asked_for
        now_s = time.time()
        for task, worker, ran_s in self._limits.too_long(now_s, _worker_of, self._ran_s):
            self._take(task, worker, ran_s, now_s)
        for task in self._limits.rested(now_s):
            if task.state == "queued":
                self._let_go(task)
            elif task.state == "no-worker":
                self._scheduler.transitions({task.key: "processing"}, f"swarm-rested-{now_s}")
        self._look_for_lost(now_s)

    # -- the parts of it -------------------------------------------------------------------------------------------

    def _ran_s(self, task: TaskState, worker: WorkerState, sent_at_s: float) -> float:
        """Heartbeats tell, half a second late; a worker that sends none may hang as a whole."""
        now_s = time.time()
        if (said_s := worker.executing.get(task)) is not None:
            return min(said_s + now_s - worker.last_seen, now_s - sent_at_s)
        if worker.last_seen > sent_at_s + FRESH_S:
            return 0.0
        began_s = self._began_s(task, worker)
        return 0.0 if began_s is None else now_s - began_s

    def _take(self, task: TaskState, worker: WorkerState, ran_s: float, now_s: float) -> None:
        rest_s = self._limits.failed(task, worker, ran_s, now_s)
        once = bool((task.annotations or {}).get(ONCE))
        is_last = rest_s is None or once
        has_seceded = task in worker.long_running
        tries = len(self._limits.attempts(task))
        self._log.warning(
            "task_timed_out",
            task=str(task.key),
            worker=worker.address,
            ran_s=round(ran_s, 3),
            timeout_s=self._limits.limit(task).timeout_s,
            tries=tries,
            again_in_s=None if is_last else rest_s,
        )
        if is_last:
            fail(
                self._scheduler, task, _timeout_error(task, self._limits.limit(task), self._limits.attempts(task), once)
            )
        else:
            self._scheduler.transitions({task.key: "released"}, f"swarm-timeout-{now_s}")
        if not has_seceded and self._scheduler.workers.get(worker.address) is worker:
            self._held.abandon(worker, task.key)

    def _look_for_lost(self, now_s: float) -> None:
        """Restart workers that have no thread left."""
        lost = {worker for worker in self._held.workers() if self._held.lost(worker) >= worker.nthreads}
        for worker in self._lost_since_s.keys() - lost:
            del self._lost_since_s[worker]
        for worker in lost:
            since_s = self._lost_since_s.setdefault(worker, now_s)
            if worker.nanny and worker in self._scheduler.running and now_s - since_s >= LOST_S:
                self._lost_since_s[worker] = now_s  # should it not work, it is tried again
                self._scheduler._ongoing_background_tasks.call_soon(self._restart, worker)

    async def _restart(self, worker: WorkerState) -> None:
        """Copy what only this worker has, then let its nanny start it again."""
        address, scheduler = worker.address, self._scheduler
        stimulus_id = f"swarm-lost-threads-{time.time()}"
        lost = self._held.lost(worker)
        self._log.warning("worker_restarts", worker=address, reason=f"all of its {lost} threads are lost")
        scheduler.log_event(["all", address], {"action": "swarm-restart-worker", "worker": address, "lost": lost})
        await scheduler.retire_workers([address], close_workers=False, remove=False, stimulus_id=stimulus_id)
        if scheduler.workers.get(address) is worker:
            await scheduler.restart_workers(
                [address], wait_for_workers=False, on_error="return", stimulus_id=stimulus_id
            )


def _worker_of(task: TaskState) -> WorkerState | None:
    return task.processing_on if task.state == "processing" else None


def _timeout_error(task: TaskState, limit: Limit, attempts: list[Attempt], once: bool) -> TaskTimeoutError:
    tried = [(attempt.worker.address, attempt.ran_s) for attempt in attempts]
    shown = ", ".join(f"{ran_s:.3g} s on {address}" for address, ran_s in tried[-SHOWN:])
    count = len(tried)
    tries = "on its only try" if count == 1 else f"on each of {count} tries"
    more = f" (the last {SHOWN}: {shown})" if count > SHOWN else f" ({shown})"
    why = f"; it must not run twice ({ONCE})" if once else ""
    what_to_do = "find out what it waits for, or allow more with dask.annotate(swarm_timeout=..., swarm_retries=...)"
    return TaskTimeoutError(
        one_line(f"task {task.key!r} ran longer than {limit.timeout_s:g} s {tries}{more}{why}; {what_to_do}"), tried
    )
