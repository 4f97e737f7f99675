"""Second copies of results on Dask's scheduler: workers are asked to fetch them from each other.

Dask's active memory manager drops each replica that no waiting task needs, every two seconds; those that are kept here
on purpose it may not have (`keeps`).
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.replicas import Hazard, is_worth_a_copy, least_share_s, redo_s

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

MOST_INPUTS = 64
"""Inputs of a task that are looked at."""
MOST_AT_ONCE, MOST_BYTES = 200, 256_000_000
"""Copies that are asked for in one go, of all workers, and their size."""
MOST_LOOKED_AT = 20_000
"""Results that are looked at again when a worker has died."""
HOLDER = "swarm-second-copies"
"""Name of the client that holds inputs, as Dask's own extensions have theirs (`Scheduler.client_desires_keys`)."""
FULL_RATIO = 0.4
"""Share of a worker's memory up to which it is given copies; Dask begins to spill at 0.6."""


class Replicating:
    """Has results copied that are worth it.

    Parameters
    ----------
    still_runs
        Whether a worker may still run a task that is over, as the loser of two runs.
    """

    def __init__(self, scheduler: Scheduler, still_runs: Callable[[TaskState, WorkerState], bool]) -> None:
        self._scheduler = scheduler
        self._still_runs = still_runs
        self._hazard = Hazard()
        self._looked_s: float | None = None
        self._share_s: dict[TaskState, float] = {}
        self._least_s = 0.0
        """Results that stand for less work are worth no copy, as of the last look."""
        self._due: dict[TaskState, None] = {}
        self._kept: set[TaskState] = set()
        self._held: dict[TaskState, list[TaskState]] = {}
        """Task → its inputs, which are not let go of before its result has a second copy."""
        self._holds: Counter[TaskState] = Counter()
        """Input → tasks that hold it."""
        self.is_stormy_now = False
        """As of the last look."""
        self.copied = 0
        """Copies that were asked for, ever."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is or will be copied."""
        return bool(self._due or self._kept or self._held)

    def _weigh(self) -> None:
        """Workers die more or less often than they did. In a storm, a second of work is worth a copy."""
        rate = self._hazard.rate
        self._least_s = least_share_s(rate)
        self.is_stormy_now = is_worth_a_copy(1.0, 0.0, rate, self._scheduler.bandwidth, is_wanted=False)

    # -- told ----------------------------------------------------------------------------------------------------------

    def given(self, task: TaskState) -> None:
        """A task was given to a worker in a storm: its inputs are held until its result has a second copy.

        Should the result be lost before, they are there, and what led to them need not be computed again.
        """
        if task in self._held or not task.dependencies:
            return
        inputs = [need for need in list(task.dependencies)[:MOST_INPUTS] if need.state == "memory"]
        self._held[task] = inputs
        new = [need.key for need in inputs if need not in self._holds]
        self._holds.update(inputs)
        if new:
            self._scheduler.client_desires_keys(new, HOLDER)

    def _let_go(self, task: TaskState) -> None:
        inputs = self._held.pop(task, ())
        self._holds.subtract(inputs)
        self._release([need for need in inputs if not self._holds[need]])

    def _release(self, inputs: Collection[TaskState]) -> None:
        for need in inputs:
            self._holds.pop(need, None)
        if inputs and HOLDER in self._scheduler.clients:
            self._scheduler.client_releases_keys([need.key for need in inputs], HOLDER, f"swarm-let-go-{time.time()}")
            if not self._holds:
                self._scheduler.clients.pop(HOLDER, None)

    def worker_leaves(self, worker: WorkerState) -> None:
        """A worker is about to be removed: what only it has and only we hold, Dask would compute again for us."""
        if self._holds:
            lost = [task for task in worker.has_what if task in self._holds and len(task.who_has or ()) == 1]
            for task in [task for task, inputs in self._held.items() if not set(lost).isdisjoint(inputs)]:
                self._held[task] = [need for need in self._held[task] if need not in lost]
            self._release(lost)

    def stop(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        self._release(list(self._holds))

    def finished(self, task: TaskState, took_s: float) -> None:
        """A task has a result. O(inputs)."""
        shares, share_s = self._share_s, took_s
        if task.dependencies:
            share_s = redo_s(
                took_s,
                (
                    (shares.get(need, 0.0), len(need.dependents or ()))
                    for need in list(task.dependencies)[:MOST_INPUTS]
                    if not self._is_wanted(need)
                ),
            )
        shares[task] = share_s
        if share_s > self._least_s and self._is_worth(task, share_s):
            self._due[task] = None

    def left_memory(self, task: TaskState) -> None:
        """Its result is not needed any more, or is lost."""
        self._due.pop(task, None)
        self._kept.discard(task)

    def forget(self, task: TaskState) -> None:
        self._share_s.pop(task, None)
        self.left_memory(task)

    def died(self) -> None:
        """A worker has died that was not meant to: what was safe enough may be so no more."""
        self._hazard.died()
        self._weigh()
        for task in list(self._share_s)[-MOST_LOOKED_AT:]:
            if task.state == "memory" and self._is_worth(task, self._share_s[task]):
                self._due[task] = None

    def endangered(self, worker: WorkerState) -> None:
        """A worker is suspected: what it alone has is copied as soon as it answers."""
        for task in worker.has_what:
            if len(task.who_has or ()) == 1:
                self._due[task] = None

    def keeps(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a worker may not be told to drop its copy."""
        holders = task.who_has or ()
        return task in self._kept and len(holders) <= 2 and worker in holders

    # -- the look ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask for the copies that are due. Every 0.1 s."""
        now_s = time.monotonic()
        if self._looked_s is not None:
            self._hazard.passed(now_s - self._looked_s, len(self._scheduler.workers))
        self._looked_s = now_s
        self._weigh()
        for task in [task for task in self._held if self._is_safe(task)]:
            self._let_go(task)
        if self._due and len(self._scheduler.running) > 1:
            self._copy(now_s)

    def _is_safe(self, task: TaskState) -> bool:
        """Whether the inputs of a task need not be held for its sake."""
        if task.state == "memory":
            return task not in self._due and (task not in self._kept or len(task.who_has or ()) > 1)
        return task.state not in ("processing", "queued", "waiting", "no-worker")

    @staticmethod
    def _is_wanted(task: TaskState) -> bool:
        """Whether a client wants its result."""
        return any(client.client_key != HOLDER for client in task.who_wants or ())

    def _is_worth(self, task: TaskState, share_s: float) -> bool:
        return is_worth_a_copy(
            share_s, task.get_nbytes(), self._hazard.rate, self._scheduler.bandwidth, is_wanted=self._is_wanted(task)
        )

    def _copy(self, now_s: float) -> None:
        scheduler: Any = self._scheduler
        room = {
            worker: FULL_RATIO * worker.memory_limit - worker.memory.process if worker.memory_limit else float("inf")
            for worker in scheduler.running
        }
        asked: dict[WorkerState, list[Any]] = {}
        nbytes = count = 0
        while self._due and count < MOST_AT_ONCE and nbytes < MOST_BYTES:
            task = next(iter(self._due))
            del self._due[task]
            if not self._is_needed(task):
                continue
            to = self._roomiest(task, room)
            if to is None:
                continue
            asked.setdefault(to, []).append(task.key)
            size = task.get_nbytes()
            room[to] -= size
            nbytes += size
            count += 1
            self._kept.add(task)
        for worker, keys in asked.items():
            scheduler.request_acquire_replicas(worker.address, keys, stimulus_id=f"swarm-replicate-{now_s}")
            self.copied += len(keys)

    def _is_needed(self, task: TaskState) -> bool:
        """Whether one worker alone has it, and somebody will ask for it."""
        return len(task.who_has or ()) == 1 and not task.actor and bool(task.waiters or self._is_wanted(task))

    def _roomiest(self, task: TaskState, room: dict[WorkerState, float]) -> WorkerState | None:
        """The worker to copy it to: on another host if there is one, then with most room.

        Not one that still runs the task: asked for a copy, Dask's worker resumes it, and keeps a result of its own.
        """
        holders: Collection[WorkerState] = task.who_has or ()
        hosts = {holder.host for holder in holders}
        fits: Iterable[WorkerState] = (
            worker
            for worker, free in room.items()
            if worker not in holders and free > task.get_nbytes() and not self._still_runs(task, worker)
        )
        return max(fits, key=lambda worker: (worker.host not in hosts, room[worker]), default=None)
