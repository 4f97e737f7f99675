"""Runs: which tasks belong to what a client submitted, and how far they are.

A client announces a run and the keys that it wants *before* it sends the graph; the next graph that asks for those
keys is the run's. So no task needs an annotation, and plain Dask code pays one failed dictionary look-up per
transition.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarm.protocol import Event, RunEnded, RunProgressed, RunStatus, RunSubmitted, Telemetry

Key = Any
"""Dask's own: str, bytes, int, float or a tuple of these."""

KEPT_RUNS = 200
"""Ended runs that `explain` and `status` still know."""


@dataclass(slots=True)
class FunctionTally:
    """What the tasks of one function (Dask's key prefix) took."""

    tasks: int = 0
    erred: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    output_bytes: int = 0


@dataclass(slots=True, eq=False)
class Run:
    """One run: its tasks, and what became of them."""

    run: str
    name: str
    client: str
    wanted: frozenset[Key]
    submitted_at_s: float
    status: RunStatus = "pending"
    reason: str = ""
    ended_at_s: float | None = None
    tasks: frozenset[Key] = frozenset()
    finished: set[Key] = field(default_factory=set)
    erred: set[Key] = field(default_factory=set)
    count: int = 0
    by_function: dict[str, FunctionTally] = field(default_factory=dict)
    by_worker: Counter[str] = field(default_factory=Counter)
    busy_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    recomputed: int = 0
    """Finishes beyond the first of each task: its result was lost, or forgotten and wanted again."""
    peak_host_cpu_percent: float | None = None
    peak_worker_memory_percent: float | None = None
    failed_on: str = ""
    """Worker of the first task that failed."""
    reported: tuple[int, int] = (-1, -1)

    @property
    def is_over(self) -> bool:
        return self.ended_at_s is not None

    @property
    def counts(self) -> tuple[int, int]:
        """Tasks that are finished and tasks that failed."""
        return self.reported if self.is_over else (len(self.finished), len(self.erred))

    def summary(self, now_s: float) -> dict[str, Any]:
        """What `Run.status` and `Run.explain` of the client are made of; msgpack types only."""
        return {
            "run": self.run,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "tasks": self.count,
            "finished": self.counts[0],
            "erred": self.counts[1],
            "recomputed": self.recomputed,
            "submitted_at_s": self.submitted_at_s,
            "elapsed_s": (self.ended_at_s or now_s) - self.submitted_at_s,
            "failed_on": self.failed_on,
            "peak_host_cpu_percent": self.peak_host_cpu_percent,
            "peak_worker_memory_percent": self.peak_worker_memory_percent,
            "functions": {
                name: {
                    "tasks": tally.tasks,
                    "erred": tally.erred,
                    "total_s": tally.total_s,
                    "longest_s": tally.longest_s,
                    "output_bytes": tally.output_bytes,
                }
                for name, tally in self.by_function.items()
            },
            "workers": {w: {"tasks": n, "busy_s": self.busy_s[w]} for w, n in self.by_worker.items()},
        }


class Runs:
    """All runs that the scheduler knows. Methods return the events that they cause."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._awaited: dict[tuple[str, frozenset[Key]], list[Run]] = {}
        """Client and wanted keys → the announced runs whose graph has not come yet. Several, when the same is
        submitted twice: announcements travel on another connection than graphs and may overtake them."""
        self.by_key: dict[Key, tuple[Run, ...]] = {}
        """Key → the runs under way that it belongs to."""

    def get(self, run: str) -> Run | None:
        return self._runs.get(run)

    def announced(self, run: str, name: str, client: str, wanted: Collection[Key], at_s: float) -> None:
        """A client is about to submit a graph that ends in `wanted`."""
        new = self._runs[run] = Run(run, name, client, frozenset(wanted), at_s)
        self._awaited.setdefault((client, new.wanted), []).append(new)
        over = [r.run for r in self._runs.values() if r.is_over]
        for old in over[: max(0, len(over) - KEPT_RUNS)]:
            del self._runs[old]

    def awaits(self, client: str, wanted: Collection[Key]) -> bool:
        """Whether a graph in which `client` asks for `wanted` belongs to an announced run. Quick for plain work."""
        return bool(self._awaited) and (client, frozenset(wanted)) in self._awaited

    def graph_arrived(
        self, client: str, wanted: Collection[Key], states: Mapping[Key, str], at_s: float
    ) -> list[Event]:
        """A graph arrived in which `client` asks for `wanted`; `states` has the state of each of its tasks."""
        announced = self._awaited.get((client, frozenset(wanted)))
        if announced is None:
            return []
        run = announced[-1]  # the newest: a graph that got lost must not shift all that follow
        self._forget_awaited(run)
        run.tasks = frozenset(states)
        run.count = len(run.tasks)
        run.status = "running"
        settled = [(key, state) for key, state in states.items() if state in ("memory", "erred")]
        run.finished = {key for key, state in settled if state == "memory"}
        run.erred = {key for key, state in settled if state == "erred"}
        # A graph may have 100,000 tasks and this blocks the event loop, so Python code runs for shared tasks only.
        shared = {key: (*self.by_key[key], run) for key in self.by_key.keys() & run.tasks}
        self.by_key.update(dict.fromkeys(states, (run,)))
        self.by_key.update(shared)
        submitted = RunSubmitted(at_s=at_s, run=run.run, name=run.name, tasks=run.count, client=run.client)
        return [submitted, *self._ended_if_complete(run, at_s)]

    def task_finished(
        self, key: Key, function: str, worker: str, duration_s: float, output_bytes: int, at_s: float
    ) -> list[Event]:
        """A task of a run went from processing to memory."""
        events: list[Event] = []
        for run in self.by_key.get(key, ()):
            if key in run.finished:
                run.recomputed += 1
            run.finished.add(key)
            run.erred.discard(key)
            run.by_worker[worker] += 1
            run.busy_s[worker] += duration_s
            tally = run.by_function.setdefault(function, FunctionTally())
            tally.tasks += 1
            tally.total_s += duration_s
            tally.longest_s = max(tally.longest_s, duration_s)
            tally.output_bytes += output_bytes
            if key in run.wanted:
                events += self._ended_if_complete(run, at_s)
        return events

    def task_erred(self, key: Key, function: str, worker: str, reason: str, at_s: float) -> list[Event]:
        """A task of a run failed for good; its dependents follow with the same reason."""
        events: list[Event] = []
        for run in self.by_key.get(key, ()):
            run.erred.add(key)
            run.by_function.setdefault(function, FunctionTally()).erred += 1
            run.failed_on = run.failed_on or worker
            run.reason = run.reason or reason
            if key in run.wanted:
                events += self.ended(run.run, "error", run.reason, at_s)
        return events

    def task_forgotten(self, key: Key, at_s: float) -> list[Event]:
        """The scheduler forgot a key: nobody wants it any more."""
        events: list[Event] = []
        for run in self.by_key.get(key, ()):
            if key in run.wanted and key not in run.finished:
                events += self.ended(run.run, "cancelled", "nobody wants its result any more", at_s)
        return events

    def ended(self, run: str, status: RunStatus, reason: str, at_s: float) -> list[Event]:
        """A run is over; keeps the tallies and lets go of the keys. The first end counts."""
        over = self._runs.get(run)
        if over is None or over.is_over:
            return []
        self._forget_awaited(over)
        for key in over.tasks:
            mine = self.by_key.pop(key, ())
            if len(mine) > 1:
                self.by_key[key] = tuple(other for other in mine if other is not over)
        over.status, over.reason, over.ended_at_s = status, reason, at_s
        progress = self._progress(over, at_s, processing=0)
        over.tasks = over.wanted = frozenset()
        over.finished, over.erred = set(), set()
        return [
            *progress,
            RunEnded(at_s=at_s, run=run, status=status, reason=reason, elapsed_s=at_s - over.submitted_at_s),
        ]

    def telemetry_arrived(self, telemetry: Telemetry) -> None:
        """Keep the peaks of what was measured while a run was under way."""
        for run in self._runs.values():
            if run.status == "running":
                run.peak_host_cpu_percent = _peak(run.peak_host_cpu_percent, telemetry.host_cpu_percent)
                memory = telemetry.worker_memory_percent
                run.peak_worker_memory_percent = _peak(run.peak_worker_memory_percent, memory)

    def progressed(self, processing: Mapping[str, int], at_s: float) -> list[Event]:
        """One event per run that moved since the last call. `processing`: run → its tasks on workers."""
        return [
            event
            for run in self._runs.values()
            if run.status == "running"
            for event in self._progress(run, at_s, processing.get(run.run, 0))
        ]

    def client_left(self, client: str, at_s: float) -> list[Event]:
        """A client disconnected; Dask forgets what only it wanted."""
        mine = [run.run for run in self._runs.values() if run.client == client and not run.is_over]
        return [event for run in mine for event in self.ended(run, "cancelled", "its client left", at_s)]

    def _progress(self, run: Run, at_s: float, processing: int) -> list[Event]:
        now = (len(run.finished), len(run.erred))
        if now == run.reported:
            return []
        run.reported = now
        finished, erred = now
        return [
            RunProgressed(
                at_s=at_s, run=run.run, tasks=run.count, finished=finished, erred=erred, processing=processing
            )
        ]

    def _ended_if_complete(self, run: Run, at_s: float) -> list[Event]:
        if run.wanted <= run.finished:
            return self.ended(run.run, "finished", "", at_s)
        return self.ended(run.run, "error", run.reason, at_s) if run.wanted & run.erred else []

    def _forget_awaited(self, run: Run) -> None:
        announced = self._awaited.get((run.client, run.wanted), [])
        if run in announced:
            announced.remove(run)
            if not announced:
                del self._awaited[run.client, run.wanted]


def _peak(so_far: float | None, reading: float | None) -> float | None:
    return so_far if reading is None else reading if so_far is None else max(so_far, reading)
