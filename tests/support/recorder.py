"""A controller under test, and a record of what it says: an action that no test asked for is a failure."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, TypeVar

from swarm.protocol import Action, Event

A = TypeVar("A", bound=Action)


class Decides(Protocol):
    def on_event(self, event: Event) -> list[Action]: ...


class Recorder:
    """Feeds events to a controller; each action must be taken by `expect` before the next event and before the end.

    >>> with Recorder(Controller(Settings())) as cluster:  # doctest: +SKIP
    ...     cluster.happens(worker_joined(), arrived(memory_percent=99))
    ...     cluster.expect(RaiseAlert)
    """

    def __init__(self, controller: Decides) -> None:
        self._controller = controller
        self._actions: list[Action] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._nothing_open()

    def happens(self, *events: Event) -> None:
        for event in events:
            self._nothing_open()
            self._actions = list(self._controller.on_event(event))

    def expect(self, kind: type[A]) -> A:
        """The next action, which must be of this kind."""
        assert self._actions, f"no {kind.__name__} was decided"
        action = self._actions.pop(0)
        assert isinstance(action, kind), f"expected {kind.__name__}, got {action}"
        return action

    def _nothing_open(self) -> None:
        assert not self._actions, f"unexpected: {self._actions}"
