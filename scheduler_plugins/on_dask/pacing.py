"""Workers that have slowed down, or fail what others do not, as alerts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.forecast import SLOW_RATIO, Paces
from scheduler_plugins.decide.symptoms import TIMES, Errors
from swarm.protocol import AlertCleared, AlertRaised, Event

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Scheduler

    from scheduler_plugins.on_dask.mind import Mind

LOOK_S = 3.0
"""Between two looks: as many samples as a trend of memory has."""
RULE = "forecast.speed"


class Pacing:
    """Raises an alert for each worker that has become slow, and clears it."""

    def __init__(self, scheduler: Scheduler, mind: Mind) -> None:
        self._scheduler = scheduler
        self._mind = mind
        self._paces = Paces()
        self._since_s: dict[str, float] = {}
        self._looked_at_s = 0.0

    def look(self, now_s: float) -> list[Event]:
        """What has changed since the last look."""
        if not self._mind.is_on or now_s - self._looked_at_s < LOOK_S:
            return []
        self._looked_at_s = now_s
        workers = self._scheduler.workers
        factor = self._mind.estimates.worker_factor
        slow = self._paces.look({address: factor(worker)[0] for address, worker in workers.items()})
        raised: list[Event] = [self._raised(worker, slow[worker], now_s) for worker in slow.keys() - self._since_s]
        cleared: list[Event] = [self._cleared(worker, now_s) for worker in self._since_s.keys() - slow]
        self._since_s = {worker: self._since_s.get(worker, now_s) for worker in slow}
        return [*raised, *cleared]

    def _raised(self, worker: str, times: float, now_s: float) -> AlertRaised:
        return AlertRaised(
            at_s=now_s,
            alert=f"forecast-speed {worker}",
            worker=worker,
            resource="speed",
            value=times,
            threshold=SLOW_RATIO,
            unit="times",
            rule=RULE,
            reason=f"worker {self._scheduler.workers[worker].name} takes {times:.1f} times as long as it used to; "
            f"its peers do not",
        )

    def _cleared(self, worker: str, now_s: float) -> AlertCleared:
        state = self._scheduler.workers.get(worker)
        return AlertCleared(
            at_s=now_s,
            alert=f"forecast-speed {worker}",
            worker=worker,
            resource="speed",
            value=None,
            reason=f"worker {worker} left" if state is None else f"worker {state.name} is as fast as before",
            lasted_s=now_s - self._since_s[worker],
        )


class Erring:
    """Raises an alert for each worker on which tasks raise that end well elsewhere, and clears it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._errors = Errors()
        self._since_s: dict[str, float] = {}
        self._looked_at_s = 0.0

    def transition(self, key: Key, finish: str, details: Mapping[str, Any]) -> None:
        """A task is not processing any more; it may have ended."""
        worker = details.get("worker")
        if worker and finish in ("memory", "erred"):
            task = self._scheduler.tasks[key]
            function = task.prefix.name if task.prefix else ""
            self._errors.ended(worker, function, is_error=finish == "erred", at_s=time.time())

    def look(self, now_s: float) -> list[Event]:
        """What has changed since the last look."""
        if now_s - self._looked_at_s < LOOK_S:
            return []
        self._looked_at_s = now_s
        workers = self._scheduler.workers
        ill = {worker: figures for worker, figures in self._errors.look(now_s).items() if worker in workers}
        raised: list[Event] = [self._raised(worker, *ill[worker], now_s) for worker in ill.keys() - self._since_s]
        cleared: list[Event] = [self._cleared(worker, now_s) for worker in self._since_s.keys() - ill]
        self._since_s = {worker: self._since_s.get(worker, now_s) for worker in ill}
        return [*raised, *cleared]

    def _raised(self, worker: str, erred: int, expected: float, now_s: float) -> AlertRaised:
        return AlertRaised(
            at_s=now_s,
            alert=f"symptoms-errors {worker}",
            worker=worker,
            resource="errors",
            value=float(erred),
            threshold=TIMES * expected,
            unit="errors",
            rule="symptoms.errors",
            reason=f"on worker {self._scheduler.workers[worker].name} {erred} tasks raised of late; "
            f"of the same functions its peers would have had {expected:.1f} errors",
            inputs={"erred": erred, "expected": expected},
        )

    def _cleared(self, worker: str, now_s: float) -> AlertCleared:
        state = self._scheduler.workers.get(worker)
        return AlertCleared(
            at_s=now_s,
            alert=f"symptoms-errors {worker}",
            worker=worker,
            resource="errors",
            value=None,
            reason=f"worker {worker} left" if state is None else f"worker {state.name} has no more errors than others",
            lasted_s=now_s - self._since_s[worker],
        )
