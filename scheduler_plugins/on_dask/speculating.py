"""Which running tasks are overdue, and where copies of them could run: what `decide.speculate` asks of placement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from scheduler_plugins.decide.load import Given
from scheduler_plugins.decide.placement import Placement
from scheduler_plugins.decide.shelves import Cost
from scheduler_plugins.decide.speculate import (
    DEFAULT,
    STUCK_SHARE,
    Budget,
    Estimate,
    Execution,
    Offer,
    Rules,
    Running,
    choose,
)
from scheduler_plugins.on_dask.copies import Copies, Copying, End
from scheduler_plugins.on_dask.held import HeldThreads

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

    from scheduler_plugins.on_dask.estimates import Estimates
    from scheduler_plugins.on_dask.why import Why

EARLY = 0.4
"""Of its p99, from which on a task is looked at where many are stuck: `limit_s` decides."""
MOST_OFFERS = 8
"""Workers that are compared for one copy, the fastest with a thread to spare."""


class Speculating:
    """Copies running tasks that should have ended.

    Parameters
    ----------
    cost
        What is known of a task.
    transfer_s
        (task, worker) → how long its inputs take to get there.
    fits
        Whether a worker may be given a task now.
    held
        Threads that are lost, which is installed already.
    why
        Is told each copy that is started, and how it ended.
    is_suspect
        Whether a worker may never be heard of again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        placement: Placement,
        estimates: Estimates,
        cost: Callable[[TaskState], Cost],
        transfer_s: Callable[[TaskState, WorkerState], float],
        fits: Callable[[TaskState, WorkerState], bool],
        held: HeldThreads,
        on_failure: Callable[[BaseException], None],
        why: Why,
        is_suspect: Callable[[WorkerState], bool],
        rules: Rules = DEFAULT,
    ) -> None:
        self._scheduler = scheduler
        self._placement = placement
        self._estimates = estimates
        self._cost = cost
        self._transfer_s = transfer_s
        self._fits = fits
        self._why = why
        self._is_suspect = is_suspect
        self._rules = rules
        self.copies = Copies(scheduler, on_failure, held=held, on_took_over=self._took_over, on_end=self._ended)
        self._count: dict[TaskState, int] = {}
        """Copies that each task has had."""
        self._shares: dict[str, float] = {}
        """Function → share of executions that are stuck, by advice."""
        self.by_advice = 0
        """Copies begun of tasks of such functions."""

    @property
    def late_ratio(self) -> float:
        """Of its p99, from which on a task may be late."""
        return EARLY if any(share > STUCK_SHARE for share in self._shares.values()) else 1.0

    def advise(self, function: str, share: float | None) -> bool:
        """So many executions of a function are stuck, or None: as usual. Whether anything else was thought before."""
        if share is None:
            return self._shares.pop(function, None) is not None
        before, self._shares[function] = self._shares.get(function), share
        return before != share

    def forget(self, task: TaskState) -> None:
        if self._count:
            self._count.pop(task, None)

    # -- told by copies --------------------------------------------------------------------------------------------

    def _took_over(self, copying: Copying) -> None:
        """The task goes on where its copy runs; Dask tells nobody of that."""
        self._placement.ended(copying.task, copying.began_s)
        self._placement.given(copying.task, copying.second, copying.began_s, self._cost)

    def _ended(self, copying: Copying, end: End) -> None:
        """What a copy has shown of the first worker, which will not tell by itself how long the task takes there."""
        self._why.copy_ended(copying, end)
        view = self._placement.views.get(copying.first)
        given = None if view is None else view.load.running.get(copying.task)
        if end == "won" and given is not None and given.started_at_s is not None:
            elapsed_s = copying.began_s + copying.lived_s - given.started_at_s
            self._estimates.ran_at_least(copying.task, copying.first.address, elapsed_s)

    # -- the decision ------------------------------------------------------------------------------------------------

    def look(self, late: Iterable[tuple[Given, WorkerState]], worked_s: float, now_s: float) -> None:
        """Copy what is worth it of these tasks, which have run longer than all but a few should, or on slow workers.

        Parameters
        ----------
        worked_s
            Seconds that all tasks have run that have ended.
        """
        fastest = next(self._placement.spare(), None)
        running = [each for given, worker in late if (each := self._running(given, worker, fastest)) is not None]
        if not running:
            return
        by_key = {each.key: each for each in running}
        tasks = self._scheduler.tasks
        budget = Budget(
            threads=self._scheduler.total_nthreads,
            live=len(self.copies.live),
            copied_s=self.copies.copied_s(now_s),
            worked_s=worked_s + sum(now_s - each.original.since_s for each in running),
        )
        offers = lambda each: self._offers(tasks[each.key])  # noqa: E731
        for copy in choose(now_s, running, offers, budget, self._placement.backlog_s(), self._rules):
            task, worker = tasks[by_key[copy.key].key], self._scheduler.workers[copy.target]
            if copy.replaces is not None:
                self.copies.give_up(copy.key)
            if self.copies.begin(task, worker):
                self._count[task] = self._count.get(task, 0) + 1
                self.by_advice += task.prefix.name in self._shares
                first = by_key[copy.key].original
                source = self._scheduler.workers[copy.source]
                estimate = first.estimate
                self._why.copied(task, source, worker, now_s - first.since_s, estimate.p50_s, estimate.p99_s)

    def copy_now(self, task: TaskState) -> bool:
        """Copy a task whose worker will soon be gone, to the best of those with a thread to spare; or one runs."""
        if task.key in self.copies.live:
            return True
        if not _may_run_twice(task):
            return False
        offers = sorted(self._offers(task), key=lambda offer: offer.estimate.p50_s + offer.transfer_s)
        return any(self.copies.begin(task, self._scheduler.workers[offer.worker]) for offer in offers[:1])

    def _running(self, given: Given, worker: WorkerState, fastest: WorkerState | None) -> Running | None:
        task: TaskState = given.task
        if task.processing_on is not worker or given.started_at_s is None or not _may_run_twice(task):
            return None
        samples = self._estimates.of(task).samples
        estimate = Estimate(given.p50_s, given.p99_s, given.p99_s, samples)
        original = Execution(worker.address, given.started_at_s, estimate, self._is_suspect(worker))
        live = self.copies.live.get(task.key)
        copy = None
        if live is not None:
            copy = Execution(live.second.address, live.began_s, self._estimate(task, live.second))
        slowness = 1.0
        if fastest is not None:
            slowness = self._estimates.factor(task, worker) / self._estimates.factor(task, fastest)
        share = self._shares.get(task.prefix.name, STUCK_SHARE) if self._shares else STUCK_SHARE
        return Running(task.key, original, copy, self._count.get(task, 0), given.tail_s, slowness, share)

    def _estimate(self, task: TaskState, worker: WorkerState) -> Estimate:
        known, factor = self._estimates.of(task), self._estimates.factor(task, worker)
        return Estimate(known.p50_s * factor, known.p90_s * factor, known.p99_s * factor, known.samples)

    def _offers(self, task: TaskState) -> list[Offer]:
        able = (
            worker
            for worker in self._placement.spare()
            if self.copies.refusal(task, worker) is None and self._fits(task, worker)
        )
        return [
            Offer(worker.address, self._estimate(task, worker), self._transfer_s(task, worker))
            for worker in islice(able, MOST_OFFERS)
        ]


def _may_run_twice(task: TaskState) -> bool:
    """What would be refused everywhere is not even looked at."""
    return not (task.actor or task.resource_restrictions or (task.annotations or {}).get("swarm_once"))
