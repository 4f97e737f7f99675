"""What memory tasks take while they run, sampled; it goes to the scheduler in the message that a task has finished.

Python can't tell which thread owns a page. So the growth of the process counts: it is the task's own where nothing else
happened meanwhile, and else no more than a bound. A peak between two samples is missed, and so is what a task takes
from memory that the allocator had kept from another.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from distributed import Worker

NAME = "swarm"
"""Of the entry in a task's metadata: {"peak_bytes": n} or {"peak_at_most_bytes": n}, more than at the start; absent
where nobody looked."""
PERIOD_S = 0.05
SHORTEST_S = 0.05
"""Tasks below are not worth it: they are seen once or not at all."""
FRESH_S = 0.005
"""Age up to which a sample stands for what was when a task started."""
RUNNING = frozenset(("executing", "long-running", "cancelled", "resumed"))
"""States in which the thread of a task still runs (`distributed.worker_state_machine`)."""


class Taken:
    """The memory of the process while one task runs."""

    __slots__ = ("growth_bytes", "is_alone", "low_bytes", "since_s")

    def __init__(self, since_s: float, bytes_now: int, is_alone: bool) -> None:
        self.since_s = since_s
        self.low_bytes = bytes_now
        self.growth_bytes = 0
        self.is_alone = is_alone

    def saw(self, bytes_now: int) -> None:
        # What falls was somebody else's: the task had nothing yet. So growth counts from the lowest point before.
        if bytes_now < self.low_bytes:
            self.low_bytes = bytes_now
        elif bytes_now - self.low_bytes > self.growth_bytes:
            self.growth_bytes = bytes_now - self.low_bytes


class ProcessMemory:
    """The memory of this process, and which tasks share it: those of all workers that live in it."""

    def __init__(self) -> None:
        self.running: dict[tuple[int, object], Taken] = {}
        self._bytes = 0
        self._sampled_at_s = 0.0
        self._statm: int | None = None
        self._users = 0

    def open(self) -> None:
        """Get ready to read. OSError: there is no such reading here."""
        self._users += 1
        if self._users == 1:
            self._read()

    def close(self) -> None:
        self._users -= 1
        if self._users == 0 and self._statm is not None:
            os.close(self._statm)
            self._statm = None

    def began(self, key: tuple[int, object], now_s: float, is_alone: bool) -> None:
        if now_s - self._sampled_at_s > FRESH_S:
            self.sample(now_s)
        running = self.running
        if running:
            is_alone = False
            for taken in list(running.values()):
                taken.is_alone = False
        running[key] = Taken(now_s, self._bytes, is_alone)

    def sample(self, now_s: float) -> None:
        self._bytes = self._read()
        self._sampled_at_s = now_s
        for taken in list(self.running.values()):
            taken.saw(self._bytes)

    def _read(self) -> int:
        """Resident bytes."""
        if self._statm is None:
            try:
                self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # not Linux
                return int(psutil.Process().memory_info().rss)
        return int(os.pread(self._statm, 100, 0).split(None, 2)[1]) * PAGE_BYTES


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if Path("/proc/self/statm").exists() else 4096
OF_THIS_PROCESS = ProcessMemory()


class TaskMemory:
    """The part of a worker's agents that hears of every transition of every task (`WorkerPlugin.transition`)."""

    name = "task memory"

    def __init__(self, process: ProcessMemory = OF_THIS_PROCESS) -> None:
        self.absent: str | None = None
        """Why there are no readings."""
        self._process = process
        self._running: dict[object, Taken] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self._before: set[object] = set()
        """Tasks that ran already when this started: nobody knows what they take."""

    def start(self, worker: Worker) -> None:
        self._state = worker.state
        self._loop = asyncio.get_running_loop()
        try:
            self._process.open()
        except (OSError, ValueError, psutil.Error) as error:
            self.absent = f"the memory of this process can't be read: {error}"
            return
        self._before = {task.key for task in worker.state.all_running_tasks}
        self._is_open = True

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for key in self._running:
            self._process.running.pop((id(self), key), None)
        self._running.clear()
        if self._is_open:
            self._is_open = False
            self._process.close()

    def transition(self, key: object, start: str, finish: str) -> None:
        """Three calls for each task, so most of them end at once."""
        if finish == "executing":
            if self._is_open and key not in self._running:
                self._began(key)
        elif start in RUNNING and finish not in RUNNING:
            if (taken := self._running.pop(key, None)) is not None:
                self._ended(key, taken, finish)
            elif self._before:
                self._before.discard(key)

    def _began(self, key: object) -> None:
        name, now_s = (id(self), key), time.monotonic()
        self._process.began(name, now_s, not self._state.transfer_incoming_count and not self._before)
        self._running[key] = self._process.running[name]
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._on_time)

    def _ended(self, key: object, taken: Taken, finish: str) -> None:
        now_s = time.monotonic()
        if now_s - taken.since_s >= SHORTEST_S and finish == "memory":
            self._sample(now_s)
            what = "peak_bytes" if taken.is_alone else "peak_at_most_bytes"
            self._state.tasks[key].metadata[NAME] = {what: taken.growth_bytes}  # type: ignore[index] # Dask's Key
        self._process.running.pop((id(self), key), None)

    def _on_time(self) -> None:
        if self._running:
            self._timer = self._loop.call_later(PERIOD_S, self._on_time)
            self._sample(time.monotonic())
        else:
            self._timer = None

    def _sample(self, now_s: float) -> None:
        if self._state.transfer_incoming_count:  # the inputs of others come into the same memory
            for taken in self._running.values():
                taken.is_alone = False
        self._process.sample(now_s)
