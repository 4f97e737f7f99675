"""Carries out actions. Preconditions are checked again: what no longer holds is refused, and comes back as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.protocol import (
    Action,
    ActionRefused,
    AdviceDropped,
    AdviceTaken,
    AlertCleared,
    AlertRaised,
    ClearAlert,
    DropAdvice,
    Event,
    RaiseAlert,
    TakeAdvice,
)

if TYPE_CHECKING:
    from distributed import Scheduler

    from scheduler_plugins.on_dask.advised import Advised


class Enactor:
    """The hands of the controller on one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.advised: Advised | None = None
        """Who goes by advice, once there is a mind."""

    def enact(self, action: Action, at_s: float) -> list[Event]:
        """Carry out one action; the events say what came of it."""
        match action:
            case RaiseAlert():
                if action.worker not in self._scheduler.workers:
                    return [_refused(action, f"worker {action.worker} has left", at_s)]
                raised = AlertRaised(
                    at_s=at_s,
                    alert=action.alert,
                    worker=action.worker,
                    resource=action.resource,
                    value=action.value,
                    threshold=action.threshold,
                    unit=action.unit,
                    rule=action.rule,
                    reason=action.reason,
                    inputs=action.inputs,
                )
                return [raised]
            case ClearAlert():
                cleared = AlertCleared(
                    at_s=at_s,
                    alert=action.alert,
                    worker=action.worker,
                    resource=action.resource,
                    value=action.value,
                    reason=action.reason,
                    lasted_s=action.lasted_s,
                )
                return [cleared]
            case TakeAdvice():
                return [self._go_by(action, at_s)]
            case DropAdvice():
                was_gone_by = self.advised is not None and self.advised.drop(action.topic, action.subject)
                dropped = AdviceDropped(at_s=at_s, topic=action.topic, subject=action.subject, reason=action.reason)
                return [dropped] if was_gone_by else []  # it had been refused, or what it was about is gone
        return [_refused(action, "nothing here knows how to do that", at_s)]

    def _go_by(self, action: TakeAdvice, at_s: float) -> Event:
        topic, of, value = action.topic, action.subject, action.value
        why_not = "there is no mind" if self.advised is None else self.advised.take(topic, of, value)
        if why_not:
            return _refused(action, why_not, at_s)
        return AdviceTaken(at_s=at_s, topic=topic, subject=of, value=value, reason=action.reason, inputs=action.inputs)


def _refused(action: Action, reason: str, at_s: float) -> ActionRefused:
    return ActionRefused(at_s=at_s, action=type(action).__name__, reason=reason)
