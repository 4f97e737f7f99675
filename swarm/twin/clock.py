"""Virtual time: an asyncio event loop that jumps from event to event, and distributed's clocks set to it."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any

from tornado.ioloop import IOLoop

from swarm.errors import TwinError

EPOCH_S = 1e9
"""POSIX time at which every simulation begins (September 2001): small enough that a float resolves 0.1 µs."""
PATCHED_PACKAGES = ("distributed", "scheduler_plugins", "swarm")
"""Whose modules read the virtual clock."""
NOT_PATCHED = ("swarm.twin",)

_Entry = tuple[float, int, Any, tuple[Any, ...] | None]


class EmptyTimelineError(Exception):
    """Nothing is left to happen: a simulation that waits for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without I/O whose time stands still while callbacks run, and jumps when none is ready.

    Events of equal time run in the order in which they were made (asyncio's own heap does not promise that).
    Executors run inline, so that nothing depends on threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = EPOCH_S
        self.events_run = 0
        self._timeline: list[_Entry] = []
        self._made = 0
        self.set_debug(False)

    def time(self) -> float:
        return self.now_s

    def elapsed_s(self) -> float:
        """Seconds since the simulation began."""
        return self.now_s - EPOCH_S

    def schedule(self, at_s: float, call: Callable[..., object], *args: Any) -> None:
        """Call at a time: `call_at` without a handle, for what is never cancelled. What it raises ends the loop."""
        self._made += 1
        heappush(self._timeline, (at_s, self._made, call, args))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heappush(self._timeline, (when, self._made, timer, None))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 — belongs to whoever awaits the result
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if not ready:
            self._jump(ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _jump(self, ready: deque[asyncio.Handle]) -> None:
        """Run one event after the other, until a callback is ready or the loop shall stop."""
        timeline = self._timeline
        while not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timeline:
                raise EmptyTimelineError
            at_s, _, call, args = heappop(timeline)
            if args is None:
                if call._cancelled:
                    continue
                ready.append(call)
            if at_s > self.now_s:  # noqa: PLR1730 — `max` takes twice as long, and this runs for every event
                self.now_s = at_s
            self.events_run += 1
            if args is not None:
                call(*args)

    def _process_events(self, event_list: object) -> None:
        raise NotImplementedError("a virtual loop has no I/O")

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector here."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""


class VirtualTime(types.ModuleType):
    """Stands in for the module `time` where a simulated part imported it."""

    def __init__(self, loop: VirtualLoop, cpu_s: Callable[[], float]) -> None:
        super().__init__("time")
        self.time = self.monotonic = self.perf_counter = loop.time
        self.process_time = self.thread_time = cpu_s

    def __getattr__(self, name: str) -> Any:
        if name == "sleep":
            raise RuntimeError("time.sleep would block the simulated scheduler")
        return getattr(time, name)


@contextmanager
def virtual_time(
    loop: VirtualLoop, cpu_s: Callable[[], float], packages: tuple[str, ...] = ()
) -> Iterator[Callable[[], None]]:
    """Let the loaded modules of distributed, of swarm and of `packages` read the clock of `loop`.

    `cpu_s` answers for `time.process_time`. Yields a function to call again when more modules have been imported.
    """
    clocks = {id(time.time), id(time.monotonic), id(time.perf_counter)}
    cpu_clocks = {id(time.process_time), id(time.thread_time)}
    stand_in = VirtualTime(loop, cpu_s)
    changed: list[tuple[dict[str, Any], str, Any]] = []
    roots = tuple(f"{name}." for name in (*PATCHED_PACKAGES, *packages))
    spared = tuple(f"{name}." for name in NOT_PATCHED)

    def patch() -> None:
        for module in list(sys.modules.values()):
            full_name = f"{getattr(module, '__name__', '')}."
            if not full_name.startswith(roots) or full_name.startswith(spared):
                continue
            names = vars(module)
            for name, value in list(names.items()):
                if value is time:
                    new: Any = stand_in
                elif id(value) in clocks:
                    new = loop.time
                elif id(value) in cpu_clocks:
                    new = cpu_s
                else:
                    continue
                changed.append((names, name, value))
                names[name] = new

    patch()
    try:
        yield patch
    finally:
        for names, name, value in reversed(changed):
            names[name] = value


@contextmanager
def running_loop() -> Iterator[VirtualLoop]:
    """A virtual loop that asyncio and tornado take for the current one."""
    if asyncio._get_running_loop() is not None:
        raise TwinError(
            "a simulation can't run inside a running event loop, such as that of a notebook; "
            "use swarm.twin.isolated.simulate_isolated, or a thread of its own"
        )
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        tornado_loop = IOLoop.current()
        tornado_loop.time = loop.time  # type: ignore[method-assign]
        yield loop
    finally:
        asyncio.set_event_loop(None)
        IOLoop._ioloop_for_asyncio.pop(loop, None)
        loop.close()
