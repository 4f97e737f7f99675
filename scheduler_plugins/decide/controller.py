"""The one controller: events in, actions out.  PURE

The rules propose and the controller resolves, in the order of precedence of `docs/architecture.md`: faults, balance,
memory, scale. Alerts change nothing in the cluster, so they conflict with nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler_plugins.decide.advice import Advice
from scheduler_plugins.decide.alerts import AlertPolicy, limits
from scheduler_plugins.decide.forecast import Forecast
from scheduler_plugins.decide.symptoms import Wear
from swarm.protocol import (
    Action,
    AdviceHeard,
    ClusterSampled,
    Event,
    TelemetryArrived,
    WorkerJoined,
    WorkerLeft,
)

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
        thresholds = settings.performance_thresholds
        self._rules = (AlertPolicy(limits(thresholds)), Forecast(celsius=thresholds.thermal_critical), Wear())
        self._advice = Advice()

    def on_event(self, event: Event) -> list[Action]:
        """What is to be done about `event`; mostly nothing."""
        match event:
            case TelemetryArrived():
                now = event.worker, event.telemetry, event.at_s
                return [action for rules in self._rules for action in rules.telemetry_arrived(*now)]
            case AdviceHeard():
                return self._advice.heard(event)
            case ClusterSampled():  # comes with each control cycle
                return self._advice.passed(event.at_s)
            case WorkerJoined():
                self._advice.worker_joined(event.worker, event.threads)
                for rules in self._rules:
                    rules.worker_joined(event.worker, event.name, event.host)
            case WorkerLeft():
                self._advice.worker_left(event.worker)
                gone = event.worker, event.at_s
                return [action for rules in self._rules for action in rules.worker_left(*gone)]
        return []
