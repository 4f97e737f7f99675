"""Emptying a worker before it goes: it is given nothing new; what runs there may end, or runs elsewhere where it can't.

Dask's own `retire_workers` copies the results of a worker, and then closes it whatever runs there; so this comes first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from scheduler_plugins.decide.drain import Left, Plan, plan
from swarm.protocol import Event, WorkerLeaving

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.on_dask.mind import Mind

LOOK_S = 0.05
"""Between two looks at what still runs there."""


class Draining:
    """Empties workers.

    Parameters
    ----------
    mind
        Who placed the tasks; where it is off, what runs is waited for, and nothing is moved.
    publish
        Is told of notices.
    """

    def __init__(self, scheduler: Scheduler, mind: Mind, publish: Callable[[Event], None]) -> None:
        self._scheduler = scheduler
        self._mind = mind
        self._publish = publish
        self._notices: dict[WorkerState, asyncio.Task[None]] = {}
        self.leaving: set[WorkerState] = set()
        """Workers that are given nothing new."""
        mind.placing.leaving = self.leaving

    async def notice(self, worker: str, notice_s: float, reason: str) -> dict[str, int]:
        """A worker will be gone in so many seconds; answers when it may go, or must.

        The answer says what is lost with it: results that only it has, and tasks that still run there.
        """
        state = self._scheduler.workers.get(worker)
        if state is None:
            return {"results": 0, "tasks": 0}
        if state not in self._notices:  # a second notice of the same end, by another way, waits with the first
            self._publish(WorkerLeaving(at_s=time.time(), worker=worker, notice_s=notice_s, reason=reason))
            self._notices[state] = asyncio.create_task(self._empty(state, notice_s))
        await asyncio.shield(self._notices[state])
        unique = sum(1 for task in state.has_what if task.who_has == {state})
        return {"results": unique, "tasks": len(state.processing)}

    async def _empty(self, worker: WorkerState, notice_s: float) -> None:
        ends_at_s = time.monotonic() + notice_s
        if self._mind.is_on:
            self._mind.replicating.endangered(worker)
        await self.drain([worker], notice_s)
        if self._is_here(worker):
            with suppress(TimeoutError):
                async with asyncio.timeout(max(ends_at_s - time.monotonic(), 0.0)):
                    # The class's own: the instance's drains first.
                    await type(self._scheduler).retire_workers(
                        self._scheduler, workers=[worker.address], close_workers=False, remove=False
                    )

    async def drain(self, workers: Collection[WorkerState], notice_s: float) -> None:
        """Let what runs there end, for at most so long.

        Whoever calls has the results moved next, and takes the workers out of `leaving` should they stay.
        """
        self.leaving.update(workers)
        ends_at_s = time.monotonic() + notice_s
        while busy := [worker for worker in workers if self._is_here(worker) and worker.processing]:
            if self.leaving.issuperset(self._scheduler.running):
                return  # all go, and nobody stays to take anything
            moved: set[TaskState] = set()
            wait_s = 0.0
            for worker in busy:
                now = self._plan(worker, ends_at_s - time.monotonic())
                moved.update(task for task in now.elsewhere if self._runs_elsewhere(task))
                wait_s = max(wait_s, now.wait_s)
            if wait_s <= 0.0 or all(task in moved for worker in busy for task in worker.processing):
                return
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """The scheduler closes, or does without."""
        for notice in self._notices.values():
            notice.cancel()

    def stays(self, workers: Collection[WorkerState]) -> None:
        """They are not drained any more: gone, or not to go after all."""
        self.leaving.difference_update(worker for worker in workers if worker not in self._notices)

    def remove_worker(self, address: str) -> None:
        """It is gone."""
        for worker in [worker for worker in self.leaving if worker.address == address]:
            self._notices.pop(worker, None)
            self.leaving.discard(worker)

    def _is_here(self, worker: WorkerState) -> bool:
        return self._scheduler.workers.get(worker.address) is worker

    def _plan(self, worker: WorkerState, notice_s: float) -> Plan:
        unique_bytes = sum(task.get_nbytes() for task in worker.has_what if len(task.who_has or ()) == 1)
        return plan(self._running(worker), notice_s, unique_bytes, self._scheduler.bandwidth)

    def _running(self, worker: WorkerState) -> Iterator[Left]:
        if not self._mind.is_on:
            return
        view = self._mind.placing.placement.views.get(worker)
        if view is None:
            return
        now_s = time.time()
        for task, given in view.load.running.items():
            elapsed_s = now_s - (given.started_at_s or now_s)
            is_late = elapsed_s > given.p50_s
            middle_s = given.remaining_s(now_s) if is_late and given.is_known else given.p50_s - elapsed_s
            yield Left(task, max(middle_s, 0.0), max(given.p99_s - elapsed_s, middle_s, 0.0))

    def _runs_elsewhere(self, task: TaskState) -> bool:
        """Start a copy of it, where one may run and does not yet."""
        return self._mind.is_on and self._mind.speculating.copy_now(task)
