"""A task that waits at a gate of the worker it runs on, in clusters inside the test's process."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed import get_worker

_PATIENCE_S = 30.0


class Gates:
    """By worker name: whether a task has come to the gate, whether it may pass, what it does then."""

    def __init__(self) -> None:
        self.arrived: defaultdict[str, int] = defaultdict(int)
        self._open: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.then: dict[str, Callable[[], object]] = {}
        self.at_once: dict[str, Callable[[], object]] = {}
        """Before it waits."""

    def open(self, worker: str, then: Callable[[], object] | None = None) -> None:
        """Let the tasks on this worker pass, now and later."""
        if then is not None:
            self.then[worker] = then
        self._open[worker].set()

    def close(self, worker: str) -> None:
        self._open[worker].clear()

    def open_all(self) -> None:
        for event in list(self._open.values()):
            event.set()

    def wait(self, worker: str) -> None:
        self.at_once.get(worker, lambda: None)()
        self.arrived[worker] += 1
        if not self._open[worker].wait(_PATIENCE_S):
            raise TimeoutError(f"the gate of {worker} was not opened within {_PATIENCE_S:g} s")
        self.then.get(worker, lambda: None)()


_gates = Gates()


def where(*_: object) -> str:
    """A task: the name of the worker that let it pass."""
    name = str(get_worker().name)
    _gates.wait(name)
    return name


@contextmanager
def gates() -> Iterator[Gates]:
    """New gates, all closed; at the end all are opened, so that no thread stays."""
    global _gates  # noqa: PLW0603 — the workers import this module, and run in this process
    _gates = Gates()
    try:
        yield _gates
    finally:
        _gates.open_all()
