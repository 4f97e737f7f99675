"""The one controller: events in, actions out.  PURE

The rules propose and the controller resolves, in the order of precedence of `docs/architecture.md`: faults, balance,
memory, scale. Alerts change nothing in the cluster, so they conflict with nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler_plugins.decide.alerts import AlertPolicy, limits
from scheduler_plugins.decide.forecast import Forecast
from swarm.protocol import Action, Event, TelemetryArrived, WorkerJoined, WorkerLeft

if TYPE_CHECKING:
    from swarm.config import Settings


class Controller:
    """Decides. Holds only what its rules must remember between events; time is the `at_s` of the events.

    >>> from swarm.config import Settings
    >>> from swarm.protocol import Telemetry
    >>> controller = Controller(Settings())
    >>> joined = WorkerJoined(at_s=0.0, worker="tcp://w", name="w0", host="h", threads=1, memory_limit_bytes=100)
    >>> controller.on_event(joined)
    []
    >>> full = Telemetry(taken_at_s=1.0, worker_memory_bytes=96, worker_memory_limit_bytes=100)
    >>> [action] = controller.on_event(TelemetryArrived(at_s=1.0, worker="tcp://w", telemetry=full))
    >>> action.reason
    'memory of worker w0 is at 96.0 %, limit 95'
    """

    def __init__(self, settings: Settings) -> None:
        self._alerts = AlertPolicy(limits(settings.performance_thresholds))
        self._forecast = Forecast()

    def on_event(self, event: Event) -> list[Action]:
        """What is to be done about `event`; mostly nothing."""
        match event:
            case TelemetryArrived():
                now = event.worker, event.telemetry, event.at_s
                return [*self._alerts.telemetry_arrived(*now), *self._forecast.telemetry_arrived(*now)]
            case WorkerJoined():
                self._alerts.worker_joined(event.worker, event.name, event.host)
                self._forecast.worker_joined(event.worker, event.name, event.host)
            case WorkerLeft():
                gone = event.worker, event.at_s
                return [*self._alerts.worker_left(*gone), *self._forecast.worker_left(*gone)]
        return []
