"""The mind: what learns what tasks cost, and places them by it. One room for its parts, so that the plugin has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tornado.ioloop import PeriodicCallback

from scheduler_plugins.decide.limits import Limit
from scheduler_plugins.io.models import Models
from scheduler_plugins.on_dask.admission import Admission
from scheduler_plugins.on_dask.choosing import Choosing
from scheduler_plugins.on_dask.deaths import Deaths
from scheduler_plugins.on_dask.estimates import Estimates
from scheduler_plugins.on_dask.held import HeldThreads
from scheduler_plugins.on_dask.limits import TaskLimits
from scheduler_plugins.on_dask.placing import Placing
from scheduler_plugins.on_dask.replicating import Replicating
from scheduler_plugins.on_dask.speculating import Speculating
from scheduler_plugins.on_dask.why import Why

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState
    from structlog.stdlib import BoundLogger

    from scheduler_plugins.on_dask.detecting import Detecting
    from scheduler_plugins.on_dask.guard import Guard
    from scheduler_plugins.on_dask.why import Recall
    from swarm.protocol import Event

Key = Any
NO_LIMIT = Limit()
LOOK_S = 0.1
"""Between two looks at what runs too long."""
TICK_S = 1.0
PART, WHY, LIMITS, COPIES, MEMORY, FAULTS = "placement", "why", "limits", "copies", "memory", "faults"
"""What the guard calls it, what remembers its decisions, what ends tasks that run too long, and what copies them."""
STRATEGY = "strategy"


class Mind:
    """Learns from every task, and answers Dask's questions about where tasks go.

    Everything of it runs behind the guard: what fails is counted and shown, and after the third time Dask has its own
    rules back.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        guard: Guard,
        log: BoundLogger,
        state_directory: str | None,
        limit: Limit = NO_LIMIT,
        *,
        publish: Callable[[Event], None],
        has_witness: Callable[[str], bool],
        has_agents: Callable[[str], bool],
        detecting: Detecting | None = None,
        tune_when_idle: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._detecting = detecting
        self._has_witness = has_witness
        self._guard = guard
        self._log = log
        folder = None if state_directory is None else Path(state_directory).expanduser()
        models = None if folder is None else Models(folder)
        self.estimates = Estimates(scheduler, models=models, on_failure=self._on_trouble)
        self.why = Why(self.estimates, self._on_why_failure)
        self.placing = Placing(
            scheduler, self.estimates, self._on_failure, self.why.chosen, self._on_recall, self._fits
        )
        self.choosing = Choosing(
            scheduler,
            self.placing,
            log,
            folder,
            self._on_strategy_failure,
            self._on_strategy,
            tune_when_idle=tune_when_idle,
        )
        self.held = HeldThreads(scheduler, self._on_held, self._on_held_failure)
        rng = Random(0)  # noqa: S311 - how long tasks rest is no secret
        self.limits = TaskLimits(
            scheduler, limit, self.held, rng, log, began_s=self._began_s, let_go=self.placing.let_go
        )
        self.admission = Admission(scheduler, self.estimates, log, self._running_on, self._worker_of)
        self.deaths = Deaths(
            scheduler,
            self.admission,
            has_witness,
            lambda worker: bool(worker.nanny) and has_agents(worker.address),
            lambda address: None if detecting is None else detecting.why_condemned(address),
            self.placing.hold_back,
            self.placing.let_go,
            publish,
            lambda error: self._guard.failed(FAULTS, error),
        )
        self.replicating = Replicating(scheduler, lambda task, worker: task.key in self.held.keys(worker))
        self.deaths.on_idle_death = self.replicating.died
        if detecting is not None:
            self.placing.suspected = detecting.suspected
            detecting.on_suspected = lambda worker: self._part(FAULTS, self.replicating.endangered, worker)
        self._look = PeriodicCallback(self._on_look, LOOK_S * 1000)
        self._ticked_at_s = 0.0
        self.is_on = False

    async def start(self) -> None:
        """Take over. What was learned in former runs comes a second later (`Estimates.start`)."""
        with ExitStack() as undo:  # half of it would leave tasks waiting for somebody who is not there
            self.estimates.start()
            undo.callback(self.estimates.close)
            undo.callback(self.placing.uninstall)
            await self.placing.install()
            undo.callback(self.choosing.stop)
            self.choosing.start()
            self.held.install()
            undo.callback(self.held.uninstall)
            self.limits.install()
            undo.callback(self.limits.uninstall)
            self.admission.install()
            self.speculating = Speculating(
                self._scheduler,
                self.placing.placement,
                self.estimates,
                self.placing.cost,
                self.placing.transfer_s,
                self._fits,
                self.held,
                self._on_copies_failure,
                self.why,
                self._has_lost_touch,
            )
            self.speculating.copies.keeps = self.replicating.keeps
            self.speculating.copies.on_worker_leaves = self.replicating.worker_leaves
            self.speculating.copies.install()
            undo.pop_all()
        self.is_on = True
        self._look.start()

    def stop(self) -> None:
        """Give Dask its own rules back."""
        if self.is_on:
            self.is_on = False
            self._look.stop()
            with self._guard(STRATEGY):
                self.choosing.stop()
            self.speculating.copies.uninstall()
            for out in (self.limits.uninstall, self.held.uninstall):
                with self._guard(LIMITS):
                    out()
            with self._guard(FAULTS):
                self.replicating.stop()
            self.placing.uninstall()
            self.estimates.close()

    async def close(self) -> None:
        """The scheduler closes: save what was learned."""
        await self.estimates.stop()
        await self.choosing.close()
        self.stop()

    def _on_trouble(self, what: str, error: Exception) -> None:
        """Something beside the event loop went wrong, and estimates go on without."""
        self._log.warning("estimates_trouble", what=what, reason=f"{type(error).__name__}: {error}")

    def _on_failure(self, error: Exception) -> None:
        self._guard.failed(PART, error)
        if not self._guard.is_on(PART):
            self.stop()
        elif self.is_on:
            loop = self._scheduler.loop.asyncio_loop  # type: ignore[attr-defined]
            loop.call_soon(self._guarded, self.placing.recover)

    def _on_why_failure(self, error: Exception) -> None:
        self._guard.failed(WHY, error)
        self.why.is_on = self._guard.is_on(WHY)

    def _on_recall(self, what: Recall, task: TaskState, worker: WorkerState) -> None:
        view = self.placing.placement.views.get(worker)
        self.why.recalled(what, task, worker, None if view is None else view.load)

    def _on_held_failure(self, error: BaseException) -> None:
        self._guard.failed(LIMITS, error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _on_copies_failure(self, error: BaseException) -> None:
        self._guard.failed(COPIES, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        if not self._guard.is_on(COPIES):
            self.speculating.copies.uninstall()

    def _on_strategy(self, name: str | None) -> None:
        self.why.strategy = name

    def _on_strategy_failure(self, error: Exception) -> None:
        self._guard.failed(STRATEGY, error)

    def _on_held(self, worker: WorkerState) -> None:
        self.placing.placement.hold(worker, self.held.count(worker), time.time())

    def _began_s(self, task: TaskState, worker: WorkerState) -> float | None:
        """Since when a task probably runs there."""
        view = self.placing.placement.views.get(worker)
        given = None if view is None else view.load.running.get(task)
        return None if given is None else given.started_at_s

    def _fits(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a worker may be given a task now."""
        if self.limits.is_asked_for and not self.limits.may_run(task, worker):
            return False
        if self.held.blocks(task, worker):
            return False
        if self.deaths.blame.crashes and not self._is_safe(task, worker):
            return False
        if MEMORY not in self._guard.off:
            try:
                return self.admission.fits(task, worker)
            except Exception as error:  # noqa: BLE001 - a context manager would cost more than the question
                self._guard.failed(MEMORY, error)
        return True

    def _has_lost_touch(self, worker: WorkerState) -> bool:
        """Whether nothing is heard of a worker, and nobody says that it lives."""
        return self._detecting is not None and self._detecting.has_lost_touch(worker)

    def _is_safe(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a task that may crash its worker would harm nobody there."""
        view = self.placing.placement.views.get(worker)
        running = 0 if view is None else len(view.load)
        is_seen = not worker.nanny or self._has_witness(worker.address)  # a nanny has none before its worker is up
        has_nothing = is_seen and not worker.has_what
        return self.deaths.blame.fits(task, worker, running, has_nothing, time.time())

    def _running_on(self, worker: WorkerState) -> Collection[TaskState]:
        view = self.placing.placement.views.get(worker)
        return () if view is None else view.load.running

    def _worker_of(self, task: TaskState) -> WorkerState | None:
        view = self.placing.placement.view(task)
        return None if view is None else view.worker

    def _part(self, name: str, do: Callable[..., None], *arguments: Any) -> None:
        """Run what goes on without placement, and placement without it."""
        if self.is_on and self._guard.is_on(name):
            with self._guard(name):
                do(*arguments)

    def _guarded(self, do: Callable[..., None], *arguments: Any) -> None:
        if self.is_on:
            try:
                do(*arguments)
            except Exception as error:  # noqa: BLE001 - the guard counts it
                self._on_failure(error)

    def _on_look(self) -> None:
        self._guarded(self._look_around)

    def _look_around(self) -> None:
        self._part(LIMITS, self.limits.look)
        self._part(MEMORY, self.admission.look)
        self._part(STRATEGY, self.choosing.look)
        self._part(FAULTS, self.replicating.look)
        late = self.placing.look()
        for worker in () if self._detecting is None else self._detecting.suspected:
            if self._has_lost_touch(worker) and (view := self.placing.placement.views.get(worker)) is not None:
                late += [(given, worker) for given in view.load.running.values()]
        if late:
            self._part(COPIES, self.speculating.look, late, self.placing.worked_s, time.time())
        now_s = time.monotonic()
        if now_s - self._ticked_at_s >= TICK_S:
            self._ticked_at_s = now_s
            self.estimates.tick(
                now_s, is_idle=not any(worker.processing for worker in self._scheduler.workers.values())
            )

    # -- hooks -----------------------------------------------------------------------------------------------------

    def add_worker(self, address: str) -> None:
        self._part(MEMORY, self.admission.add_worker, self._scheduler.workers[address])
        self._guarded(self.placing.add_worker, self._scheduler.workers[address])

    def remove_worker(self, address: str) -> None:
        if not self.is_on:
            return
        worker = next((each for each in self.placing.placement.views if each.address == address), None)
        if worker is not None:
            self._part(LIMITS, self.limits.remove_worker, worker)
            self.deaths.blame.left(worker)
            self._part(MEMORY, self._judge_death, worker)
        self._guarded(self.placing.remove_worker, address)
        self._guarded(self.estimates.worker_left, address)
        self.why.worker_left(address)

    def _judge_death(self, worker: WorkerState) -> None:
        death = self.admission.remove_worker(worker)
        if death is not None:
            self.deaths.happened(death)
            self._part(FAULTS, self.replicating.died)
        else:
            self.deaths.left(worker)

    def log_event(self, topic: str, message: Any) -> None:
        self._part(MEMORY, self.admission.log_event, topic, message)
        self._part(MEMORY, self.deaths.log_event, topic, message)

    def update_graph(self, tasks: Collection[Key]) -> None:
        self._part(STRATEGY, self.choosing.update_graph, tasks)
        self._guarded(self.placing.update_graph, tasks)
        self._part(LIMITS, self.limits.update_graph, tasks)

    def transition(self, key: Key, start: str, finish: str, details: Mapping[str, Any]) -> None:
        """After each transition of each task: the hot path."""
        if finish == "waiting":
            return
        if finish == "released" and start == "memory":
            if self.replicating.is_busy:
                self._part(FAULTS, self.replicating.left_memory, self._scheduler.tasks[key])
            return
        try:
            task = self._scheduler.tasks[key]
            took_s = None
            if finish == "memory" and start == "processing" and (address := details.get("worker")):
                took_s = self._learn(task, address, details)
            if self.limits.is_asked_for:
                self.limits.transition(task, start, finish)
            self._account(task, start, finish)
            self.placing.transition(task, start, finish, took_s)
            self.why.transition(task, start, finish, details)
            if finish == "queued":
                self._hold_back(task)
            elif finish == "forgotten":
                self.estimates.forget(task)
                self.replicating.forget(task)
                self.speculating.forget(task)
        except Exception as error:  # noqa: BLE001 - the guard counts it
            self._on_failure(error)

    def _learn(self, task: TaskState, address: str, details: Mapping[str, Any]) -> float | None:
        """From a task that has finished; returns the seconds that it ran."""
        took_s = self.estimates.finished(task, address, details)
        if took_s is None:
            return None
        if (worker := self._scheduler.workers.get(address)) is not None and (spans := details.get("startstops")):
            self.placing.reported(worker, took_s, spans[-1]["stop"])
        if FAULTS not in self._guard.off:
            try:
                self.replicating.finished(task, took_s)
            except Exception as error:  # noqa: BLE001 - a context manager would cost more than the rest
                self._guard.failed(FAULTS, error)
        return took_s

    def _account(self, task: TaskState, start: str, finish: str) -> None:
        """What it takes of its worker's memory, whether it is in quarantine, and what must outlive it."""
        if finish == "processing" and self.replicating.is_stormy_now:
            self._part(FAULTS, self.replicating.given, task)
        if MEMORY not in self._guard.off:
            try:
                self.admission.transition(task, start, finish)
                if self.deaths.blame.crashes:
                    self.deaths.transition(task, start, finish)
            except Exception as error:  # noqa: BLE001 - a context manager would cost more than the rest
                self._guard.failed(MEMORY, error)

    def _hold_back(self, task: TaskState) -> None:
        """A task is ready; perhaps it may not run yet."""
        if self.limits.is_asked_for and self.limits.rests(task):
            self.placing.hold_back(task)
            self.why.waits(task, "it has failed, and rests before it is tried again")
        elif self.deaths.holds(task):
            self.placing.hold_back(task)
            self.why.waits(task, "its worker died, and it is not known yet of what")
