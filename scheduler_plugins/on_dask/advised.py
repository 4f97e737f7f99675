"""Advice of agents on one scheduler: hears it, and lets placement, copies and strategies go by what was decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from scheduler_plugins.decide.advice import read
from scheduler_plugins.decide.agents import SCHEDULER
from swarm.channels.messages import Message
from swarm.errors import MessageError, UnknownAgentError
from swarm.protocol import AdviceHeard, AdviceTopic, Event

if TYPE_CHECKING:
    from distributed import Scheduler

    from scheduler_plugins.on_dask.membership import Membership
    from scheduler_plugins.on_dask.mind import Mind


class Advised:
    """Between the agents' messages to `scheduler` and the mind.

    Parameters
    ----------
    publish
        Takes events, for the controller to decide on.
    """

    def __init__(self, scheduler: Scheduler, members: Membership, mind: Mind, publish: Callable[[Event], None]) -> None:
        self._scheduler = scheduler
        self._members = members
        self._mind = mind
        self._publish = publish

    def hear(self, message: Message) -> None:
        """A message to the scheduler itself.

        Raises
        ------
        MessageError, UnknownAgentError
            It is no advice, or is not for the scheduler.
        """
        if message.recipient != SCHEDULER:
            raise UnknownAgentError(f"{message.recipient} takes no messages; answer those that it sends")
        if message.wants_answer:
            raise MessageError(f"the scheduler takes {message.kind} without an answer, if at all; send it, don't ask")
        details = read(message.kind, message.payload)
        workers = self._of_host(str(details["place"])) if "place" in details else ()
        self._publish(
            AdviceHeard(at_s=time.time(), agent=message.sender, what=message.kind, details=details, workers=workers)
        )

    def counts(self) -> dict[str, int]:
        """What was done by advice: copies begun, and busy periods by a strategy that was advised."""
        mind = self._mind
        return {"copies": mind.speculating.by_advice if mind.is_on else 0, "strategy": mind.choosing.by_advice}

    def _of_host(self, place: str) -> tuple[str, ...]:
        """The workers of the host of a worker or nanny."""
        states = self._scheduler.workers.values()
        host_of = self._members.host_of
        hosts = {host_of(state.address) for state in states if place in (state.address, state.nanny)} - {None}
        return tuple(state.address for state in states if host_of(state.address) in hosts)

    def take(self, topic: AdviceTopic, subject: str, value: float | str) -> str:
        """Go by it; returns why not, if it can't be."""
        mind = self._mind
        if not mind.is_on:
            return "Dask places tasks by its own rules"
        match topic:
            case "threads":
                if (worker := self._scheduler.workers.get(subject)) is None:
                    return f"worker {subject} has left"
                mind.placing.rest(worker, worker.nthreads - int(value))
            case "copies":
                mind.speculating.advise(subject, float(value))
                mind.placing.late_ratio = mind.speculating.late_ratio
            case "strategy":
                return mind.choosing.advise(subject, str(value))
        return ""

    def drop(self, topic: AdviceTopic, subject: str) -> bool:
        """Go by it no more; whether anything was gone by."""
        mind = self._mind
        if not mind.is_on:
            return False
        match topic:
            case "threads":
                worker = self._scheduler.workers.get(subject)
                return worker is not None and mind.placing.rest(worker, 0)
            case "copies":
                was_advised = mind.speculating.advise(subject, None)
                mind.placing.late_ratio = mind.speculating.late_ratio
                return was_advised
            case "strategy":
                return mind.choosing.advise(subject, None) == ""
