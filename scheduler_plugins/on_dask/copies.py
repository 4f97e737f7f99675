"""Copies: a running task is run a second time elsewhere, and the first result wins.

Dask knows one worker per task, `TaskState.processing_on`, and one number of the run, `TaskState.run_id`. A copy is the
same "compute-task" message to a second worker, under a number of its own: so whatever arrives late from the execution
that lost is stale by Dask's own rule (`Scheduler.stimulus_task_finished`), whether or not we still listen. When the
copy is first, it becomes the task before Dask hears of the result: `processing_on` and `run_id` are switched the way
`WorkStealing.move_task_confirm` moves a task, and the first worker is told to forget it. That goes out before anything
that Dask sends about the result, or the first worker would take the task for one that it still has to report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from distributed.diagnostics.plugin import SchedulerPlugin

from scheduler_plugins.on_dask.held import HeldThreads

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

Key = Any

End = Literal["won", "lost", "took over", "erred", "worker left", "given up"]
"""won: the copy was first; lost: the original was; took over: the original failed or its worker left, and the copy is
the task now; erred: the copy raised, and the original goes on; given up: the task is not wanted any more, has seceded,
or copies were switched off."""

ONCE = "swarm_once"
"""Annotation of tasks that must not run twice."""
SHUFFLE_BARRIER = "shuffle-barrier-"
"""`distributed.shuffle._core._BARRIER_PREFIX`."""


@dataclass(slots=True, eq=False)
class Copying:
    """A task that runs twice."""

    task: TaskState
    first: WorkerState
    second: WorkerState
    first_run: int | None
    second_run: int
    began_s: float
    """Clock of `time.time`."""
    lived_s: float = 0.0
    """Until it ended, once it has."""


def _is_of_shuffle(task: TaskState) -> bool:
    """Whether it sends or takes parts of a peer-to-peer shuffle, which go from worker to worker as it runs."""
    return "shuffle_original_restrictions" in (task.annotations or {}) or any(
        isinstance(each.key, str) and each.key.startswith(SHUFFLE_BARRIER)
        for each in (task, *task.dependencies, *task.dependents)
    )


def _nobody(*_: object) -> None:
    """Nobody wants to be told."""


class Copies(SchedulerPlugin):
    """Starts copies of running tasks, and sees to it that Dask hears of one execution only.

    It is among the scheduler's plugins while copies live, since Dask tells plugins of every way in which a task leaves
    `processing`: finished, cancelled, forgotten, its inputs lost, the scheduler restarted.

    Parameters
    ----------
    scheduler
        Some of its handlers are wrapped while this is installed.
    on_failure
        Is given what goes wrong in here, while Dask's own handlers go on.
    held
        Where held threads are counted by others too, who install it before and uninstall it after; None: here alone.
    on_held
        Is told each worker of which `held.count` has changed.
    on_took_over
        Is told of each task that goes on as its copy, after `processing_on` has changed.
    on_end
        Is told how each copy ended.
    """

    name = "swarm-copies"

    def __init__(
        self,
        scheduler: Scheduler,
        on_failure: Callable[[BaseException], None],
        *,
        held: HeldThreads | None = None,
        on_held: Callable[[WorkerState], None] = _nobody,
        on_took_over: Callable[[Copying], None] = _nobody,
        on_end: Callable[[Copying, End], None] = _nobody,
    ) -> None:
        self._scheduler = scheduler
        self._on_failure = on_failure
        self._on_took_over = on_took_over
        self._on_end = on_end
        self._owns_held = held is None
        self.held = HeldThreads(scheduler, on_held, on_failure) if held is None else held
        self.live: dict[Key, Copying] = {}
        self.keeps: Callable[[TaskState, WorkerState], bool] = lambda _task, _worker: False
        """Whether a worker must not be told to drop a result that it has a second copy of."""
        self.on_worker_leaves: Callable[[WorkerState], None] = _nobody
        """Is told each worker that is about to be removed, before Dask knows."""
        self._copied_s = 0.0
        self._is_installed = False

    # -- in and out ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        scheduler: Any = self._scheduler
        if self._owns_held:
            self.held.install()
        self._streams: dict[str, Callable[..., Any]] = {
            "task-finished": self._task_finished,
            "task-erred": self._task_erred,
            "reschedule": self._reschedule,
            "long-running": self._long_running,
        }
        self._dasks = {op: scheduler.stream_handlers[op] for op in self._streams}
        scheduler.stream_handlers.update(self._streams)
        self._dasks_remove_worker = scheduler.remove_worker
        self._dasks_unregister = scheduler.handlers["unregister"]
        self._dasks_remove_replicas = scheduler.request_remove_replicas
        scheduler.remove_worker = scheduler.handlers["unregister"] = self._remove_worker
        scheduler.request_remove_replicas = self._remove_replicas
        self._is_installed = True

    def uninstall(self) -> None:
        """End all copies, the originals go on; give Dask its own methods back."""
        if not self._is_installed:
            return
        self._is_installed = False
        scheduler: Any = self._scheduler
        for copying in list(self.live.values()):
            self._free(copying.second, copying.task.key)
            self._end(copying, "given up")
        if self._owns_held:
            self.held.uninstall()
        for op, ours in self._streams.items():
            if scheduler.stream_handlers[op] == ours:  # else somebody has wrapped it, and ours only passes on
                scheduler.stream_handlers[op] = self._dasks[op]
        if scheduler.handlers["unregister"] == self._remove_worker:
            scheduler.handlers["unregister"] = self._dasks_unregister
        for name, ours in (("remove_worker", self._remove_worker), ("request_remove_replicas", self._remove_replicas)):
            if vars(scheduler).get(name) == ours:
                before = self._dasks_remove_worker if name == "remove_worker" else self._dasks_remove_replicas
                del vars(scheduler)[name]
                if getattr(scheduler, name) != before:  # somebody's own, from before ours
                    setattr(scheduler, name, before)

    # -- asked and told by whoever decides ---------------------------------------------------------------------------

    def copied_s(self, now_s: float) -> float:
        """Seconds that copies have run, those that still do included."""
        return self._copied_s + sum(now_s - copying.began_s for copying in self.live.values())

    def refusal(self, task: TaskState, worker: WorkerState) -> str | None:
        """Why no copy of this task may start there; None: it may."""
        scheduler: Any = self._scheduler
        first = task.processing_on
        if not self._is_installed:
            return "copies are off"
        if task.state != "processing" or first is None:
            return f"it is {task.state}"
        allowed = scheduler.valid_workers(task)
        annotations = task.annotations or {}
        stealing = scheduler.extensions.get("stealing")
        reasons = {
            "a copy of it runs": task.key in self.live,
            "that worker takes no tasks": worker not in scheduler.running,
            "it runs there": worker is first,
            "it still runs there": task.key in self.held.keys(worker),
            "an input of it still runs there": self.held.blocks(task, worker),
            "it is an actor": task.actor,
            f"it must not run twice ({ONCE})": annotations.get(ONCE),
            "it is bound to resources": task.resource_restrictions,
            "it has seceded": task in first.long_running,
            "it is part of a peer-to-peer shuffle": _is_of_shuffle(task),
            "it may not run there": allowed is not None and worker not in allowed,
            "its inputs do not fit there": 0 < worker.memory_limit < sum(d.get_nbytes() for d in task.dependencies),
            "it is being moved": stealing is not None and task in getattr(stealing, "in_flight", ()),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def begin(self, task: TaskState, worker: WorkerState) -> bool:
        """Start a copy there, unless `refusal` knows why not."""
        if self.refusal(task, worker) is not None:
            return False
        first, first_run = task.processing_on, task.run_id
        assert first is not None
        try:
            message = self._scheduler._task_to_msg(task)  # it takes the next run id, and gives it to the task
        finally:
            task.run_id = first_run
        if not self.live:
            self._scheduler.plugins[self.name] = self
        copying = Copying(task, first, worker, first_run, message["run_id"], time.time())
        self.live[task.key] = copying
        self._forget_in_stealing(task)  # it runs: the worker would refuse
        self.held.reserve(worker, task.key)
        self._scheduler.worker_send(worker.address, message)
        return True

    def give_up(self, key: Key) -> None:
        """Give up the copy of a task; the original goes on."""
        copying = self.live.get(key)
        if copying is not None:
            self._abandon(copying.second, key)
            self._end(copying, "given up")

    # -- heard from workers ------------------------------------------------------------------------------------------

    def _task_finished(self, key: Key, worker: str, run_id: int, **message: Any) -> None:
        copying = self.live.get(key)
        if copying is not None and self._sender(copying, worker, run_id=run_id) == "second":
            try:
                self._switch(copying)  # should that fail, the original still runs
                self._abandon(copying.first, key)
                self._end(copying, "won")
            except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
                self._on_failure(error)
        self._dasks["task-finished"](key=key, worker=worker, run_id=run_id, **message)

    def _task_erred(self, key: Key, worker: str, run_id: int, **message: Any) -> None:
        """An error counts when both have one.

        A task is copied because its worker is suspect, and so is its error; the copy is already what a retry would be,
        and was expected to end before the original. `TaskState.retries` count from the second error on.
        """
        copying = self.live.get(key)
        if copying is not None:
            try:
                if self._has_taken_over(copying, self._sender(copying, worker, run_id=run_id), "erred"):
                    return
            except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
                self._on_failure(error)
        self._dasks["task-erred"](key=key, worker=worker, run_id=run_id, **message)

    def _reschedule(self, key: Key, worker: str | None = None, **message: Any) -> None:
        """A task asks to be run elsewhere (`distributed.Reschedule`): that is what its copy does."""
        copying = self.live.get(key)
        if copying is not None:
            try:
                if self._has_taken_over(copying, self._sender(copying, worker), "given up"):
                    return
            except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
                self._on_failure(error)
        self._dasks["reschedule"](key=key, worker=worker, **message)

    def _has_taken_over(self, copying: Copying, which: str | None, end: End) -> bool:
        """One of two executions has ended without a result; True: it was the original, and Dask need not know."""
        if which == "second":
            self._free(copying.second, copying.task.key)
            self._end(copying, end)
            self.held.release(copying.second, copying.task.key)
        elif which == "first":
            self._take_over(copying)
            self._free(copying.first, copying.task.key)
            self._scheduler.stimulus_queue_slots_maybe_opened(stimulus_id=f"swarm-copy-{time.time()}")
            return True
        return False

    def _long_running(self, key: Key, worker: str, run_id: int, **message: Any) -> None:
        """A task that secedes starts others, and would start them twice: it has no copies."""
        try:
            if self._is_installed and (state := self._scheduler.workers.get(worker)) is not None:
                if (copying := self.live.get(key)) and self._sender(copying, worker, run_id=run_id):
                    self.give_up(key)
                self.held.seceded(state, key)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        self._dasks["long-running"](key=key, worker=worker, run_id=run_id, **message)

    @staticmethod
    def _sender(copying: Copying, worker: str | None, **of_run: int) -> Literal["first", "second"] | None:
        """Which of the two executions sends it; None: it is stale. Some messages of Dask say nothing of the run."""
        if worker == copying.second.address and of_run.get("run_id", copying.second_run) == copying.second_run:
            return "second"
        if worker == copying.first.address and of_run.get("run_id", copying.first_run) == copying.first_run:
            return "first"
        return None

    # -- what else happens -------------------------------------------------------------------------------------------

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """The task leaves `processing` otherwise than by its copy. Dask's own messages about that come later."""
        if start != "processing" or (copying := self.live.get(key)) is None:
            return
        try:
            self._abandon(copying.second, key)
            self._end(copying, "lost" if finish == "memory" else "given up")
        except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
            self._on_failure(error)

    async def _remove_worker(self, address: str, *, expected: bool = False, **options: Any) -> Any:
        """In place of `Scheduler.remove_worker`."""
        try:
            worker = self._scheduler.workers.get(self._scheduler.coerce_address(address))
            if worker is not None and self._is_installed:
                self.on_worker_leaves(worker)
                self._worker_leaves(worker, expected=expected)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        return await self._dasks_remove_worker(address, expected=expected, **options)

    def _worker_leaves(self, worker: WorkerState, *, expected: bool) -> None:
        for copying in [each for each in self.live.values() if worker in (each.first, each.second)]:
            task = copying.task
            if not expected:
                if copying.first is worker and task.suspicious >= self._scheduler.allowed_failures:
                    continue  # Dask fails a task that so many workers died of
                # As Dask counts each task that ran on a worker that died.
                task.suspicious += 1
                task.prefix.suspicious += 1
            if copying.second is worker:
                self._end(copying, "worker left")
            else:
                self._take_over(copying)
        self.held.worker_left(worker)

    def _remove_replicas(self, addr: str, keys: list[Key], *, stimulus_id: str) -> None:
        """In place of `Scheduler.request_remove_replicas`.

        The active memory manager does not know that a copy needs its inputs, and the worker that it tells to drop one
        would close.
        """
        if self.live:
            needed = {
                need.key
                for copying in self.live.values()
                if copying.second.address == addr
                for need in copying.task.dependencies
            }
            keys = [key for key in keys if key not in needed]
        worker, tasks = self._scheduler.workers[addr], self._scheduler.tasks
        if worker in self._scheduler.running:  # not where one is being retired
            keys = [key for key in keys if not self.keeps(tasks[key], worker)]
        if keys:
            self._dasks_remove_replicas(addr, keys, stimulus_id=stimulus_id)

    # -- the parts of it ---------------------------------------------------------------------------------------------

    def _free(self, worker: WorkerState, key: Key) -> None:
        """Tell a worker that nobody wants its result."""
        message = {"op": "free-keys", "keys": [key], "stimulus_id": f"swarm-copy-{time.time()}"}
        self._scheduler.worker_send(worker.address, message)

    def _abandon(self, worker: WorkerState, key: Key) -> None:
        """The same, while a thread there may still run it."""
        if self._scheduler.workers.get(worker.address) is worker:
            self._free(worker, key)
            self.held.abandon(worker, key)

    def _take_over(self, copying: Copying) -> None:
        """The copy is the task from now on."""
        self._switch(copying)
        self._end(copying, "took over")
        self._on_took_over(copying)

    def _switch(self, copying: Copying) -> None:
        task, first, second = copying.task, copying.first, copying.second
        self._forget_in_stealing(task)
        first.remove_from_processing(task)
        task.processing_on = second
        second.add_to_processing(task)
        task.run_id = copying.second_run  # last: until then Dask would take the copy's result for stale, and drop it
        for worker in (first, second):
            self._scheduler.check_idle_saturated(worker)

    def _end(self, copying: Copying, end: End) -> None:
        del self.live[copying.task.key]
        if not self.live:
            self._scheduler.plugins.pop(self.name, None)
        copying.lived_s = time.time() - copying.began_s
        self._copied_s += copying.lived_s
        if end in ("won", "took over"):
            self.held.release(copying.second, copying.task.key)
        self._on_end(copying, end)

    def _forget_in_stealing(self, task: TaskState) -> None:
        stealing: Any = self._scheduler.extensions.get("stealing")
        if stealing is not None:
            stealing.remove_key_from_stealable(task)
            stealing._remove_from_in_flight(task)
