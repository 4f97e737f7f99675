"""Threads that a worker cannot give back: they run what nobody waits for any more.

Dask cannot stop a thread. When it takes a running task away from a worker (cancelled, placed elsewhere, its copy was
quicker), it counts the slot as free, and what it sends there waits behind the thread; for ever, if that never ends.
Heartbeats tell the truth: they list each key that a thread works on. And whoever has just taken a task away asks the
worker at once, with Dask's own "steal-request", which is answered with the state of the task there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, KeysView
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

Key = Any

ASKED, BUSY = 2, 1
"""Heartbeats in a row that must not list a key for its thread to be free. One that left the worker just before the
task began may arrive late; once the worker has said that it is busy with it, there is none."""

_NONE: dict[Key, float] = {}


class HeldThreads:
    """Counts the threads of each worker that are busy beyond what Dask knows of.

    Parameters
    ----------
    scheduler
        Its handlers for heartbeats and for answers to steal requests are wrapped while this is installed.
    on_change
        Is told each worker of which the count has changed.
    on_failure
        Is given what goes wrong in here, while Dask's own handlers go on.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        on_change: Callable[[WorkerState], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._scheduler = scheduler
        self._on_change = on_change
        self._on_failure = on_failure
        self._held: dict[WorkerState, dict[Key, float]] = {}
        """Worker → key → heartbeats in a row that must not list it; inf: it is wanted."""
        self._asked: dict[str, tuple[WorkerState, Key]] = {}
        self._numbers = itertools.count()
        self._strays: dict[WorkerState, list[Key]] = {}
        """Keys that the last heartbeat listed, and that Dask does not wait for there."""
        self._seceded: dict[WorkerState, set[Key]] = {}
        self._is_installed = False

    # -- in and out ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        scheduler: Any = self._scheduler
        self._dasks_heartbeat = scheduler.handlers["heartbeat_worker"]
        self._dasks_answer = scheduler.stream_handlers.get("steal-response")
        scheduler.handlers["heartbeat_worker"] = self._heartbeat
        scheduler.stream_handlers["steal-response"] = self._answer
        self._is_installed = True

    def uninstall(self) -> None:
        """Give Dask its handlers back; what is held is forgotten."""
        if not self._is_installed:
            return
        self._is_installed = False
        scheduler: Any = self._scheduler
        if scheduler.handlers["heartbeat_worker"] == self._heartbeat:
            scheduler.handlers["heartbeat_worker"] = self._dasks_heartbeat
        # Without stealing Dask has no handler of its own, and an answer that is under way would break the connection.
        if scheduler.stream_handlers["steal-response"] == self._answer and self._dasks_answer is not None:
            scheduler.stream_handlers["steal-response"] = self._dasks_answer
        workers = list(self._held)
        for each in (self._held, self._asked, self._strays, self._seceded):
            each.clear()
        for worker in workers:
            self._on_change(worker)

    # -- asked by whoever places tasks -----------------------------------------------------------------------------

    def count(self, worker: WorkerState) -> int:
        """Threads of the worker that are busy beyond `WorkerState.processing`."""
        return len(self._held.get(worker, _NONE))

    def workers(self) -> KeysView[WorkerState]:
        """Those that have any."""
        return self._held.keys()

    def lost(self, worker: WorkerState) -> int:
        """Those of them whose work nobody wants."""
        return sum(patience != inf for patience in self._held.get(worker, _NONE).values())

    def keys(self, worker: WorkerState) -> KeysView[Key]:
        """What they run."""
        return self._held.get(worker, _NONE).keys()

    def blocks(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a task can't run there because it takes the result of one that a thread there still works on.

        Such a worker does not fetch the result from where it is: it waits until its own thread is through.
        """
        held = self._held.get(worker)
        return held is not None and any(need.key in held for need in task.dependencies)

    # -- told by whoever starts and ends copies --------------------------------------------------------------------

    def reserve(self, worker: WorkerState, key: Key) -> None:
        """A thread there will run something that Dask does not know of."""
        self._held.setdefault(worker, {})[key] = inf
        self._on_change(worker)

    def abandon(self, worker: WorkerState, key: Key) -> None:
        """The worker has been told to forget a task (`free-keys`): hold a thread for it until it is free."""
        self._held.setdefault(worker, {})[key] = ASKED
        question = f"swarm-held-{next(self._numbers)}"
        self._asked[question] = (worker, key)
        self._scheduler.worker_send(worker.address, {"op": "steal-request", "key": key, "stimulus_id": question})
        self._on_change(worker)

    def release(self, worker: WorkerState, key: Key) -> None:
        """Nothing of ours runs there under this key."""
        held = self._held.get(worker, _NONE)
        if held.pop(key, None) is None:
            return
        if not held:
            del self._held[worker]
        self._on_change(worker)

    def seceded(self, worker: WorkerState, key: Key) -> None:
        """A task has left the threads that take tasks (`distributed.secede`)."""
        self._seceded.setdefault(worker, set()).add(key)
        self.release(worker, key)

    def worker_left(self, worker: WorkerState) -> None:
        for each in (self._held, self._strays, self._seceded):
            each.pop(worker, None)
        self._asked = {question: about for question, about in self._asked.items() if about[0] is not worker}

    # -- heard from workers ----------------------------------------------------------------------------------------

    def _answer(self, *, key: Key, state: str | None, stimulus_id: str, **message: Any) -> None:
        """In place of `WorkStealing.move_task_confirm`: the state of a task there, after it was told to forget it."""
        about = self._asked.pop(stimulus_id, None)
        if about is None:
            if self._dasks_answer is not None:
                self._dasks_answer(key=key, state=state, stimulus_id=stimulus_id, **message)
            return
        try:
            worker, key = about
            held = self._held.get(worker, _NONE)
            if held.get(key) != ASKED:
                return
            if state == "cancelled":
                held[key] = BUSY
            else:
                self.release(worker, key)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
            self._on_failure(error)

    def _heartbeat(self, **message: Any) -> Any:
        """In place of `Scheduler.heartbeat_worker`, whose `executing` leaves out keys that Dask has forgotten."""
        reply = self._dasks_heartbeat(**message)
        if self._is_installed:
            try:
                worker = self._scheduler.workers.get(message["address"])
                if worker is not None:
                    self._heard(worker, message.get("executing") or {})
            except Exception as error:  # noqa: BLE001 — whatever is wrong with ours, Dask goes on
                self._on_failure(error)
        return reply

    def _heard(self, worker: WorkerState, executing: Collection[Key]) -> None:
        before = self.count(worker)
        held = self._held.setdefault(worker, {})
        for key, patience in list(held.items()):
            if patience == inf:
                continue
            if key in executing and not self._is_wanted(worker, key):
                held[key] = BUSY
            elif patience > BUSY and key not in executing:
                held[key] = patience - 1
            else:
                del held[key]
        for key in self._strays_again(worker, executing):
            held.setdefault(key, BUSY)
        if not held:
            del self._held[worker]
        if self.count(worker) != before:
            self._on_change(worker)

    def _strays_again(self, worker: WorkerState, executing: Collection[Key]) -> list[Key]:
        """What Dask does not wait for there, and did not at the heartbeat before.

        What has ended since the worker wrote the list is on it too; but not on two in a row.
        """
        seceded = self._seceded.pop(worker, set()) & set(executing)
        if seceded:
            self._seceded[worker] = seceded
        strays = [key for key in executing if not self._is_wanted(worker, key) and key not in seceded]
        known = self._strays.pop(worker, ())
        if strays:
            self._strays[worker] = strays
        return [key for key in strays if key in known]

    def _is_wanted(self, worker: WorkerState, key: Key) -> bool:
        task = self._scheduler.tasks.get(key)
        return task is not None and task.processing_on is worker
