"""Memory admission on Dask's scheduler: a worker takes what fits, and a death teaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from dask.utils import format_bytes

from scheduler_plugins.decide.memory import SMALL, Memory, Reading
from scheduler_plugins.on_dask.failing import fail
from swarm.config import one_line
from swarm.errors import TaskMemoryError

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState
    from structlog.stdlib import BoundLogger

    from scheduler_plugins.on_dask.estimates import Estimates

KILLED = "worker-restart-memory"
"""What a nanny logs before it kills its worker (`NannyMemoryManager.memory_monitor`)."""
AFTER_S = 5.0
"""So long after a death, its nanny's word counts: it comes on a connection of its own."""
MOST_INPUTS = 64
"""Inputs of a task that are looked at."""


def _share(name: str, otherwise: float) -> float:
    value = dask.config.get(f"distributed.worker.memory.{name}")
    return float(value) if value else otherwise


class Death(NamedTuple):
    """A worker was lost that was not meant to leave."""

    worker: WorkerState
    lost: dict[TaskState, int]
    """What it had been given → how often Dask had suspected each before."""
    ran: set[TaskState]
    """Those of them that probably ran."""
    by_memory: bool
    """Whether its nanny said that it kills it for its memory."""


class Admission:
    """Knows what fits where.

    Parameters
    ----------
    running
        Worker → the tasks that probably run there, by whoever placed them.
    where
        Task → the worker that was given it, by the same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        estimates: Estimates,
        log: BoundLogger,
        running: Callable[[WorkerState], Collection[TaskState]],
        where: Callable[[TaskState], WorkerState | None],
    ) -> None:
        self._scheduler = scheduler
        self._estimates = estimates
        self._log = log
        self._running = running
        self._where = where
        self.memory = Memory()
        self._terminate, self._target = _share("terminate", 1.0), _share("target", 1.0)
        self._spills = bool(dask.config.get("distributed.worker.memory.spill"))
        self._suspicious: dict[TaskState, int] = {}
        """As it was when the task was sent to its worker; 0 where it is not in here."""
        self._lost: dict[WorkerState, list[TaskState]] = {}
        self._ran: dict[WorkerState, set[TaskState]] = {}
        self._killed_at_s: dict[str, float] = {}
        """Address of a worker → when its nanny said that it kills it."""

    def install(self) -> None:
        for worker in self._scheduler.workers.values():
            self.add_worker(worker)
        for task in self._scheduler.tasks.values():
            if task.state == "processing":
                self.transition(task, "queued", "processing")

    # -- asked by whoever places tasks -----------------------------------------------------------------------------

    def fits(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a worker may be given a task now."""
        memory = self.memory
        if not memory.is_wary and self._estimates.peak_bytes(task) is None:
            return True
        function, need_bytes, _ = self._need(task)
        if not need_bytes and not memory.lessons and not memory.refused:
            return True
        room = memory.rooms.get(worker)
        if room is None:
            return True
        if room.reading.at_s != worker.last_seen:
            room.read(self._reading(worker))
        if need_bytes > SMALL * room.kill_bytes:
            need_bytes += self._lacking_bytes(task, worker)
        return memory.fits(task, worker, function, need_bytes, self._results_bytes(worker), time.time())

    def _need(self, task: TaskState) -> tuple[str, float, bool]:
        peak_bytes = self._estimates.peak_bytes(task)
        if peak_bytes is not None and self._spills:  # the result is Dask's to care for: it goes to disk if need be
            peak_bytes = max(peak_bytes - (self._estimates.of(task).output_bytes or 0.0), 0.0)
        function = self._estimates.function(task)
        return function, self.memory.need_bytes(task, function, peak_bytes), peak_bytes is not None

    def _results_bytes(self, worker: WorkerState) -> float:
        """In memory now; what is beyond the target Dask writes to disk as it comes."""
        spilled = worker.metrics.get("spilled_bytes", {}).get("memory", 0)
        return min(max(float(worker.nbytes - spilled), 0.0), self._target * worker.memory_limit)

    def _reading(self, worker: WorkerState) -> Reading:
        memory = worker.memory
        return Reading(worker.last_seen, memory.process, memory.unmanaged_old, self._results_bytes(worker))

    @staticmethod
    def _lacking_bytes(task: TaskState, worker: WorkerState) -> int:
        """Of inputs that it must fetch."""
        if len(task.dependencies) > MOST_INPUTS:
            return 0
        return sum(need.get_nbytes() for need in task.dependencies if worker not in (need.who_has or ()))

    # -- Dask's plugin hooks, by way of the plugin -----------------------------------------------------------------

    def add_worker(self, worker: WorkerState) -> None:
        self.memory.join(worker, worker.nthreads, self._terminate * worker.memory_limit)
        self.memory.rooms[worker].read(self._reading(worker))

    def transition(self, task: TaskState, start: str, finish: str) -> None:
        """To be called before whoever knows what runs where forgets it."""
        if finish == "processing":
            if task.suspicious:
                self._suspicious[task] = task.suspicious
            if self.memory.is_wary or not self._estimates.is_light(task):
                self._given(task, task.processing_on)
        elif start == "processing":
            if finish == "memory":
                self._over(task, is_done=True)
            else:
                self._taken(task)
        if finish == "forgotten":
            self.memory.forget(task)

    def _given(self, task: TaskState, worker: WorkerState | None) -> None:
        assert worker is not None
        function, need_bytes, is_known = self._need(task)
        self.memory.given(task, worker, function, need_bytes, is_known, time.time())

    def _over(self, task: TaskState, *, is_done: bool) -> None:
        if self._suspicious:
            self._suspicious.pop(task, None)
        self.memory.ended(task, is_done=is_done)

    def _taken(self, task: TaskState) -> None:
        worker = self.memory.worker(task)
        is_light = worker is None
        if is_light:
            worker = self._where(task)
        if worker is None or self._scheduler.workers.get(worker.address) is worker:
            self._over(task, is_done=False)
            return
        # Its end is judged below, and then each of its tasks counts.
        if worker not in self._lost:
            self._lost[worker] = []
            self._ran[worker] = {*self._running(worker), *worker.executing}
        self._lost[worker].append(task)
        if is_light:
            self._given(task, worker)

    def log_event(self, topic: str, message: Any) -> None:
        """Hear what nannies say."""
        if topic == KILLED and isinstance(message, Mapping) and (address := message.get("worker")):
            now_s = time.time()
            self._killed_at_s = {each: at for each, at in self._killed_at_s.items() if now_s - at < AFTER_S}
            self._killed_at_s[str(address)] = now_s

    def remove_worker(self, worker: WorkerState) -> Death | None:
        """Dask has taken its tasks back, and has counted its death against each of them, unless it was meant to end.

        Then this is its death, which is to be judged; with `died`, or `leave` where its memory had no part in it.
        """
        lost, ran = self._lost.pop(worker, []), self._ran.pop(worker, set())
        suspicious = {task: self._suspicious.pop(task, 0) for task in lost}
        blamed = [task for task in lost if task.suspicious > suspicious[task]]
        self._forget(worker, [task for task in lost if task not in ran])
        if not blamed:
            self.leave(worker, ran)
            return None
        before = {task: suspicious[task] for task in blamed}
        return Death(worker, before, ran.intersection(blamed), worker.address in self._killed_at_s)

    def leave(self, worker: WorkerState, ran: Collection[TaskState] = ()) -> None:
        """Forget a worker that has left."""
        self._forget(worker, ran)
        self.memory.leave(worker)

    def _forget(self, worker: WorkerState, tasks: Collection[TaskState]) -> None:
        for task in tasks:
            if self.memory.worker(task) is worker:
                self.memory.ended(task, is_done=False)

    @staticmethod
    def excuse(death: Death) -> None:
        """Take back what Dask has counted against its tasks."""
        for task, before in death.lost.items():
            task.prefix.suspicious -= max(task.suspicious - before, 0)
            task.suspicious = min(task.suspicious, before)

    def died(self, death: Death, *, by_memory: bool) -> None:
        """It died of its memory, or that may be so: count it against those whose fault it may be."""
        worker, ran = death.worker, death.ran
        metrics = worker.metrics  # of its last heartbeat: Dask has forgotten by now what it held
        held_bytes = metrics.get("managed_bytes", 0) - metrics.get("spilled_bytes", {}).get("memory", 0)
        inputs_bytes = sum(need.get_nbytes() for task in ran for need in islice(task.dependencies, MOST_INPUTS))
        results_bytes = min(float(max(held_bytes, inputs_bytes)), self._target * worker.memory_limit)
        verdict = self.memory.died(worker, death.lost, ran, results_bytes=results_bytes, by_memory=by_memory)
        for task in {*death.lost} - {*verdict.excused}:
            task.suspicious += 1
            task.prefix.suspicious += 1
        self._log.warning(
            "worker_died",
            worker=worker.address,
            by_memory=by_memory,
            suspects=sorted(map(str, verdict.suspects)),
            excused=len(verdict.excused),
        )
        self.leave(worker, ran)

    def look(self) -> None:
        """What time alone shows."""
        memory = self.memory
        if memory.refused:
            memory.withdraw(time.time())
        for task in memory.too_large() if memory.proven_bytes else ():
            need_bytes = memory.proven_bytes[task]
            memory.forget(task)
            if task.state == "queued":
                fail(self._scheduler, task, self._too_large(task, need_bytes))

    def _too_large(self, task: TaskState, need_bytes: float) -> TaskMemoryError:
        limit = max(worker.memory_limit for worker in self._scheduler.workers.values())
        return TaskMemoryError(
            one_line(
                f"task {task.key!r} needs more than {format_bytes(int(need_bytes))} of memory: its worker died of it "
                f"while it ran alone there, and the largest has a limit of {format_bytes(limit)}; make the task "
                f"smaller, or start workers with a higher --memory-limit"
            )
        )
