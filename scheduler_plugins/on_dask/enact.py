"""Carries out actions. Preconditions are checked again: what no longer holds is refused, and comes back as an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarm.protocol import Action, ActionRefused, AlertCleared, AlertRaised, ClearAlert, Event, RaiseAlert

if TYPE_CHECKING:
    from distributed import Scheduler


class Enactor:
    """The hands of the controller on one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

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
        return [_refused(action, "nothing here knows how to do that", at_s)]


def _refused(action: Action, reason: str, at_s: float) -> ActionRefused:
    return ActionRefused(at_s=at_s, action=type(action).__name__, reason=reason)
