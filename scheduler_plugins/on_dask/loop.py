"""The control loop: observe → decide → enact, and every event to those who want to know."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from swarm.protocol import (
    TOPIC,
    ActionRefused,
    AdviceHeard,
    AgentRefused,
    AlertRaised,
    ClusterSampled,
    Event,
    PartDisabled,
    RunProgressed,
    TelemetryArrived,
    WorkerCondemned,
    WorkerDied,
    WorkerLeaving,
    WorkerSuspected,
    to_wire,
)
from swarm.telemetry.logs import event_fields

if TYPE_CHECKING:
    from distributed import Scheduler
    from structlog.stdlib import BoundLogger

    from scheduler_plugins.decide.controller import Controller
    from scheduler_plugins.on_dask.enact import Enactor
    from scheduler_plugins.on_dask.guard import Guard
    from swarm.dashboard.view_model import ViewModel

READINGS = (TelemetryArrived, ClusterSampled, RunProgressed, AdviceHeard)
"""Events that come all the time: folded into the view, but neither logged nor published nor kept."""
WARNINGS = (
    AlertRaised,
    AgentRefused,
    ActionRefused,
    PartDisabled,
    WorkerSuspected,
    WorkerCondemned,
    WorkerDied,
    WorkerLeaving,
)
HISTORY = 10_000


class ControlLoop:
    """Takes events in, lets the controller decide, and carries out what it says; all on the scheduler's event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        enactor: Enactor,
        view: ViewModel,
        guard: Guard,
        log: BoundLogger,
    ) -> None:
        self._scheduler = scheduler
        self._controller = controller
        self._enactor = enactor
        self._view = view
        self._guard = guard
        self._log = log
        self.history: deque[Event] = deque(maxlen=HISTORY)

    def take(self, event: Event) -> None:
        """One event, and all that follows from it."""
        queue = deque([event])
        while queue:
            now = queue.popleft()
            self._tell(now)
            if not self._guard.is_on("controller"):
                continue
            with self._guard("controller"):
                for action in self._controller.on_event(now):
                    queue.extend(self._enactor.enact(action, now.at_s))

    def _tell(self, event: Event) -> None:
        if self._guard.is_on("view"):
            with self._guard("view"):
                self._view.apply(event)
        if isinstance(event, READINGS):
            return
        self.history.append(event)
        fields = event_fields(event)
        if isinstance(event, WARNINGS):
            self._log.warning(**fields)
        else:
            self._log.info(**fields)
        if self._guard.is_on("events"):
            with self._guard("events"):
                self._scheduler.log_event(TOPIC, to_wire(event))
