"""What happened in a simulation: executions, transfers, who came and went; its hash and its rules."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from swarm.twin.models import Key

if TYPE_CHECKING:
    from swarm.twin.clock import VirtualLoop
    from swarm.twin.computing import Execution
    from swarm.twin.work import Work
    from swarm.twin.worker import SimulatedWorker

Outcome = Literal["running", "done", "unwanted", "lost", "erred"]
"""done: the worker kept the result; unwanted: the task had been cancelled meanwhile; lost: the process ended."""


@dataclass(slots=True)
class Executed:
    """One execution of a task: a bar of the Gantt chart."""

    key: Key
    worker: str
    lane: int
    """Thread of the worker, counted from 0."""
    start_s: float
    stop_s: float = -1.0
    outcome: Outcome = "running"


class Recorder:
    """Writes down a simulation as it goes. Times are seconds since it began."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.executions: dict[int, Executed] = {}
        self.not_held: list[str] = []
        """Executions that began without an input."""
        self.events: list[tuple[float, str, str]] = []
        """Workers that came and went, and faults: (time, what, worker)."""
        self.transfers = 0
        self.transferred_bytes = 0
        self.done: Counter[Key] = Counter()
        self._numbers = itertools.count(1)
        self._zero_s = loop.now_s
        self._hash = hashlib.sha256()

    def next_execution(self) -> int:
        return next(self._numbers)

    def started(self, worker: SimulatedWorker, execution: Execution, missing: list[Key]) -> None:
        start_s = execution.started_s - self._zero_s
        self.executions[execution.number] = Executed(execution.key, worker.name, execution.lane, start_s)
        if missing:
            self.not_held.append(f"{execution.key!r} began on {worker.name} without {missing[0]!r}")
        self._note(start_s, "start", worker.name, execution.key)

    def stopped(self, worker: SimulatedWorker, execution: Execution, outcome: Outcome) -> None:
        stop_s = self.loop.now_s - self._zero_s
        entry = self.executions[execution.number]
        entry.stop_s, entry.outcome = max(stop_s, entry.start_s), outcome
        if outcome == "done":
            self.done[execution.key] += 1
        self._note(stop_s, outcome, worker.name, execution.key)

    def transferred(self, worker: SimulatedWorker, peer: str, size: int, began_s: float, ended_s: float) -> None:
        self.transfers += 1
        self.transferred_bytes += size
        self._note(ended_s - self._zero_s, "transfer", worker.name, peer)

    def event(self, what: str, worker: str) -> None:
        at_s = self.loop.now_s - self._zero_s
        self.events.append((at_s, what, worker))
        self._note(at_s, what, worker, "")

    def start_clock(self) -> None:
        """From now on times are counted; what was before has times below 0."""
        earlier_s, self._zero_s = self.loop.now_s - self._zero_s, self.loop.now_s
        self.events = [(at_s - earlier_s, what, worker) for at_s, what, worker in self.events]

    def _note(self, at_s: float, what: str, worker: str, key: Key) -> None:
        self._hash.update(f"{at_s:.6f} {what} {worker} {key}\n".encode())

    @property
    def started_count(self) -> int:
        return len(self.executions)

    def broken(self, work: Work, *, is_finished: bool, copies: int = 0) -> list[str]:
        """Rules about the executions that do not hold; some are only for a run in which all went well.

        Parameters
        ----------
        copies
            Of one task, that the policy may run beside it: both may finish before the scheduler hears of either.
        """
        unknown = [f"{key!r} was executed and is not in the graph" for key in self.done if key not in work.costs]
        lost = [f"{key!r} is needed and never finished" for key in work.needed if is_finished and not self.done[key]]
        again = []
        if all(what == "joined" for _, what, _ in self.events):
            again = [
                f"{key!r} finished {n} times, and nothing had failed" for key, n in self.done.items() if n > 1 + copies
            ]
        twice: dict[tuple[str, int], float] = {}
        overlaps = []
        for entry in sorted(self.executions.values(), key=lambda e: e.start_s):
            lane = (entry.worker, entry.lane)
            if entry.lane < 0 or entry.start_s < twice.get(lane, 0.0) - 1e-6:
                overlaps.append(f"{entry.key!r} began on a busy thread of {entry.worker}")
            twice[lane] = entry.stop_s if entry.stop_s >= 0 else math.inf
        return unknown[:3] + lost[:3] + again[:3] + overlaps[:3]

    @property
    def trace_hash(self) -> str:
        """SHA-256 over all that happened, in order."""
        return self._hash.hexdigest()
