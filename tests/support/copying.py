"""Plugins that copy tasks in tests: by chance, or by the rule with the simplest estimates that there are."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import distributed.scheduler
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import TaskState, WorkerState

from scheduler_plugins.decide import speculate
from scheduler_plugins.on_dask.copies import Copies, Copying, End


def now() -> float:
    """POSIX time, or that of the simulation: what Dask's scheduler takes for it."""
    clock: Callable[[], float] = vars(distributed.scheduler)["time"]
    return clock()


class _NeverIdle(set[WorkerState]):
    """In place of Dask's set of workers with room: its own rule shall not give them tasks."""

    def add(self, element: WorkerState) -> None:
        pass


class FirstFree:
    """Gives each ready task to the first worker, by name, with a free thread: the least that can be known of held ones.

    Parameters
    ----------
    is_aware
        Whether threads count that are busy beyond what Dask knows of.
    """

    def __init__(self, scheduler: Scheduler, copies: Copies, *, is_aware: bool = True) -> None:
        hooks: Any = scheduler
        self._scheduler = scheduler
        self._copies = copies
        self._is_aware = is_aware
        self._task: TaskState | None = None
        hooks.idle_task_count = _NeverIdle()
        hooks.is_rootish = self._takes
        hooks.decide_worker_rootish_queuing_enabled = lambda: self.worker_for(self._task)
        hooks.stimulus_queue_slots_maybe_opened = self.fill

    def _takes(self, task: TaskState) -> bool:
        self._task = task
        return not task.worker_restrictions and not task.resource_restrictions and not task.actor

    def free_threads(self, worker: WorkerState) -> int:
        held = self._copies.held.count(worker) if self._is_aware else 0
        return worker.nthreads - held - len(worker.processing) + len(worker.long_running)

    def idle(self) -> list[WorkerState]:
        workers = sorted(self._scheduler.workers.values(), key=lambda worker: str(worker.name))
        return [worker for worker in workers if self._is_open(worker)]

    def _is_open(self, worker: WorkerState) -> bool:
        return worker in self._scheduler.running and self.free_threads(worker) > 0

    def worker_for(self, task: Any) -> WorkerState | None:
        blocks = self._copies.held.blocks
        return next((each for each in self.idle() if not (self._is_aware and blocks(task, each))), None)

    def fill(self, *, stimulus_id: str) -> None:
        for task in list(self._scheduler.queued.sorted()):
            if task.state == "queued" and self.worker_for(task) is not None:
                self._scheduler.transitions({task.key: "processing"}, stimulus_id)


class CopyingPlugin(SchedulerPlugin):
    """Has copies of tasks run, and remembers how each ended.

    Parameters
    ----------
    period_s
        Between two looks at what runs.
    is_aware
        Whether placement knows of threads that are busy beyond what Dask knows of.
    """

    name = "copying-in-tests"

    def __init__(self, *, period_s: float = 0.05, is_aware: bool = True) -> None:
        self.period_s = period_s
        self.is_aware = is_aware
        self.ends: list[tuple[Copying, End]] = []
        self.failures: list[BaseException] = []

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.copies = Copies(
            scheduler,
            self.failures.append,
            on_held=lambda worker: self._fill_soon(),
            on_end=lambda copying, end: self.ends.append((copying, end)),
        )
        self.copies.install()
        self.placement = FirstFree(scheduler, self.copies, is_aware=self.is_aware)
        self._timer = asyncio.get_running_loop().call_later(self.period_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()
        self.copies.uninstall()

    def of(self, end: End) -> list[Copying]:
        return [copying for copying, how in self.ends if how == end]

    def _fill_soon(self) -> None:
        asyncio.get_running_loop().call_soon(lambda: self.placement.fill(stimulus_id="held-changed"))

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.period_s, self._look)
        self.look()
        self.check()

    def look(self) -> None:
        """Copy what should be."""
        raise NotImplementedError

    def check(self) -> None:
        """What always holds of copies."""
        live = self.copies.live
        for key, copying in live.items():
            task = self.scheduler.tasks[key]
            assert task is copying.task
            assert task.processing_on is copying.first
            assert task.run_id == copying.first_run
            assert self.scheduler.workers[copying.second.address] is copying.second
            assert key in self.copies.held.keys(copying.second)
        assert ("swarm-copies" in self.scheduler.plugins) == bool(live)
        assert not self.failures, self.failures


class ByChance(CopyingPlugin):
    """Copies any task to any worker at any time, and takes some away again."""

    def __init__(self, seed: int) -> None:
        super().__init__(period_s=0.05)
        self._rng = random.Random(f"{seed} copies")

    def look(self) -> None:
        self.period_s *= 1.02  # most happens early; some runs last for 600 s, until Dask notices a hung worker
        rng, scheduler = self._rng, self.scheduler
        running = [task for task in scheduler.tasks.values() if task.state == "processing"]
        workers = list(scheduler.workers.values())
        if not running or not workers:
            return
        task, worker, what = rng.choice(running), rng.choice(workers), rng.random()
        if what < 0.55:
            self.copies.begin(task, worker)
        elif what < 0.60 and self.copies.live:
            self.copies.give_up(rng.choice(list(self.copies.live)))
        elif what < 0.63:
            scheduler.transitions({task.key: "released"}, "taken-away-by-the-test")
        elif what < 0.64:
            self.copies.uninstall()
            self.copies.install()


class ByRule(CopyingPlugin):
    """Copies what `speculate.choose` says, with what tasks of the same name took so far as the estimate."""

    def __init__(self, *, is_aware: bool = True, rules: speculate.Rules = speculate.DEFAULT) -> None:
        super().__init__(is_aware=is_aware)
        self._rules = rules
        self._took: dict[str, list[float]] = {}
        self._since: dict[Any, float] = {}
        self._begun: dict[Any, int] = {}
        self._worked_s = 0.0
        self.chosen: list[speculate.Copy] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "processing":
            self._since[key] = now()
        elif start == "processing" and finish == "memory":
            took_s = sum(s["stop"] - s["start"] for s in kwargs.get("startstops", ()) if s["action"] == "compute")
            self._took.setdefault(self.scheduler.tasks[key].prefix.name, []).append(took_s)
            self._worked_s += took_s

    def _estimate(self, task: TaskState) -> speculate.Estimate:
        took = self._took.get(task.prefix.name, [])
        middle_s = statistics.median(took) if took else 0.5
        return speculate.Estimate(middle_s, 1.15 * middle_s, 1.3 * middle_s, len(took))

    def look(self) -> None:
        now_s = now()
        tasks = {task: task.processing_on for task in self.scheduler.tasks.values() if task.processing_on is not None}
        running = [
            speculate.Running(
                task.key,
                speculate.Execution(first.address, self._since[task.key], self._estimate(task)),
                None
                if (live := self.copies.live.get(task.key)) is None
                else speculate.Execution(live.second.address, live.began_s, self._estimate(task)),
                self._begun.get(task.key, 0),
            )
            for task, first in tasks.items()
        ]
        budget = speculate.Budget(
            threads=self.scheduler.total_nthreads,
            live=len(self.copies.live),
            copied_s=self.copies.copied_s(now_s),
            worked_s=self._worked_s + sum(now_s - self._since[task.key] for task in tasks),
        )
        for copy in speculate.choose(now_s, running, self._offers, budget, rules=self._rules):
            self.chosen.append(copy)
            if copy.replaces is not None:
                self.copies.give_up(copy.key)
            if self.copies.begin(self.scheduler.tasks[copy.key], self.scheduler.workers[copy.target]):
                self._begun[copy.key] = self._begun.get(copy.key, 0) + 1

    def _offers(self, running: speculate.Running) -> Sequence[speculate.Offer]:
        if self.scheduler.queued:
            return ()
        estimate = self._estimate(self.scheduler.tasks[running.key])
        return [speculate.Offer(worker.address, estimate) for worker in self.placement.idle()]


class ByHand(CopyingPlugin):
    """Copies what the test says."""

    def look(self) -> None:
        """The test looks itself."""
