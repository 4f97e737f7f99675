"""Dask's worker state machine as it is, less what it notes down for logs and dashboards that no simulation has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

from distributed.worker_state_machine import (
    ComputeTaskEvent,
    ExecuteSuccessEvent,
    GatherDepSuccessEvent,
    StateMachineEvent,
    TaskCounter,
    TaskState,
    WorkerState,
)


class _NotLogged:
    """An event that makes no copy of itself for a log that keeps nothing here."""

    __slots__ = ()

    def to_loggable(self, *, handled: float) -> StateMachineEvent:
        return self  # type: ignore[return-value]


class Compute(_NotLogged, ComputeTaskEvent):
    __slots__ = ()


class Success(_NotLogged, ExecuteSuccessEvent):
    __slots__ = ()


class Gathered(_NotLogged, GatherDepSuccessEvent):
    __slots__ = ()


class Counts(TaskCounter):
    """How many tasks are in which state, without the seconds that they spent there.

    Dask adds these up for every prefix and state with every event, for Prometheus, and sums the counts over the
    prefixes with every heartbeat. `WorkerState.validate_state` holds the counts against the tasks at the end of each
    run that is checked.
    """

    __slots__ = ("_by_state",)

    def __init__(self) -> None:
        super().__init__()
        self._by_state: defaultdict[str, int] = defaultdict(int)

    def current_count(self, by_prefix: bool = True) -> Counter[Any]:
        """As `TaskCounter.current_count`."""
        if by_prefix:
            return super().current_count()
        return Counter({state: count for state, count in self._by_state.items() if count})

    def transitions(self, prev_states: dict[TaskState, Any]) -> None:
        """As `TaskCounter.transitions`."""
        counts, by_state, new = self._current_count, self._by_state, self._new_tasks
        for task, before in prev_states.items():
            prefix, now = task.prefix, task.state
            if now != "forgotten":
                by_state[now] += 1
                counts[prefix, now] = counts.get((prefix, now), 0) + 1
            if task in new:
                new.discard(task)
                continue
            by_state[before] -= 1
            left = counts[prefix, before] - 1
            if left:
                counts[prefix, before] = left
            else:
                dict.__delitem__(counts, (prefix, before))  # `Counter` has one in Python
        for task in new:
            by_state[task.state] += 1
            counts[task.prefix, task.state] += 1
        new.clear()


@cache
def _handler(kind: type[StateMachineEvent]) -> Callable[..., Any]:
    found: Callable[..., Any] = vars(WorkerState)["_handle_event"].dispatcher.dispatch(kind)
    return found


class Machine(WorkerState):
    """Finds the handler of an event as `functools.singledispatchmethod` does, which makes a function for each call."""

    __slots__ = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.task_counter = Counts()

    def _handle_event(self, ev: StateMachineEvent) -> Any:
        kind: Any = type(ev)
        return _handler(kind)(self, ev)
