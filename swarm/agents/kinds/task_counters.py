"""What tasks cost, read in the thread that runs them, at their begin and at their end.

Dask keeps `Worker.active_threads`, and writes to it in the thread of a task just before and just after it runs. A dict
that looks on is put in its place: nothing of Dask is patched, and a task that is not measured costs two calls more.
"""

from __future__ import annotations

import gc
import inspect
import resource
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask.utils import key_split
from distributed import worker as dask_worker

from swarm.agents.kinds.function_costs import Cost
from swarm.agents.watch.task_memory import RUNNING
from swarm.telemetry.sources.counters import Counters, Reading

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Worker

SAMPLES_PER_MINUTE = 50
"""Of each function, while nothing more is asked."""
_THREAD = getattr(resource, "RUSAGE_THREAD", None)
"""Linux only."""


@dataclass(slots=True)
class _Plan:
    """A task that shall be measured."""

    function: str
    input_bytes: int
    is_full: bool
    began_s: float = 0.0
    cpu_s: float = 0.0
    setting: int = 0
    gc_s: float = 0.0
    process_cpu_s: float = 0.0
    page_faults: int = 0
    preemptions: int = 0
    side_by_side: int = 1
    reading: Reading | None = None
    reads: Mapping[str, int] = field(default_factory=dict)
    cost: Cost | None = None


class ActiveThreads(dict[int, "Key"]):
    """Thread → key of the task that it runs, as `Worker.active_threads`; tells its owner of both ends."""

    owner: TaskCounters | None = None

    def __init__(self, threads: Mapping[int, Key]) -> None:
        super().__init__(threads)
        self._undo: dict[int, Callable[[], None]] = {}

    def __setitem__(self, ident: int, key: Key) -> None:
        super().__setitem__(ident, key)
        if (owner := self.owner) is not None and (undo := owner.begins(key)) is not None:
            self._undo[ident] = undo

    def __delitem__(self, ident: int) -> None:
        if (owner := self.owner) is not None and (key := self.get(ident)) is not None:
            owner.ends(key)
        if (undo := self._undo.pop(ident, None)) is not None:
            undo()
        self.pop(ident, None)


class TaskCounters:
    """Measures tasks of one worker: some of each function, and all of one that `follow` names.

    Parameters
    ----------
    counters
        Closed with this.
    on_cost
        Called on the event loop for each measured task that succeeded.
    reads
        How often each tunable was read until now by the thread that asks.
    """

    def __init__(
        self,
        counters: Counters,
        on_cost: Callable[[Cost], None],
        reads: Callable[[], Mapping[str, int]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = counters
        self.follow = ""
        """Function of which all tasks are measured; their times only, beyond the usual sample."""
        self.setting = 0
        """A number that stands for what the tasks run with; who changes something changes it too."""
        self.in_thread: Callable[[str], Callable[[], None] | None] | None = None
        """Called with the function in the thread of each task before it begins; what it returns, after it has ended."""
        self.failure: Exception | None = None
        """What went wrong beside a task, of which that knows nothing; nothing is measured any more."""
        self.finished: dict[str, int] = {}
        """Function → tasks that have succeeded."""
        self._on_cost = on_cost
        self._reads = reads
        self._clock = clock
        self._plans: dict[Key, _Plan] = {}
        self._samples: dict[str, tuple[float, int]] = {}
        self._gc_s = self._gc_began_s = 0.0
        self._threads: ActiveThreads | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self, worker: Worker) -> str | None:
        """Begin to look on; returns why that can't be, if so."""
        if reason := why_not(worker):
            return reason
        self._worker = worker
        with worker.active_threads_lock:
            threads = worker.active_threads
            if not isinstance(threads, ActiveThreads):
                worker.active_threads = threads = ActiveThreads(threads)
            threads.owner = self
        self._threads = threads
        gc.callbacks.append(self._on_gc)
        return None

    def stop(self) -> None:
        """Look on no more. The dict stays, since running tasks hold it, and does nothing."""
        if self._threads is not None:
            self._threads.owner = None
            self._threads = None
            gc.callbacks.remove(self._on_gc)
        self._plans.clear()
        self.counters.close()

    # -- on the event loop -----------------------------------------------------------------------------------------

    def transition(self, key: Key, start: str, finish: str) -> None:
        """As `WorkerPlugin.transition`: three calls for each task. Dask would only log what it raises."""
        try:
            self._transition(key, start, finish)
        except Exception as error:  # noqa: BLE001 - the agent raises it in its next cycle
            self._fail(error)

    def _transition(self, key: Key, start: str, finish: str) -> None:
        if finish == "executing":
            if start not in RUNNING:
                self._plan(key)
        elif start in RUNNING and finish not in RUNNING:
            plan = self._plans.pop(key, None)
            if (threads := self._threads) is not None and threads:
                self._forget(threads, key)
            if finish == "memory":
                task = self._worker.state.tasks[key]
                self.finished[task.prefix] = self.finished.get(task.prefix, 0) + 1
                if plan is not None and (cost := plan.cost) is not None:
                    cost.output_bytes = task.nbytes or 0
                    self._on_cost(cost)

    def running(self, function: str) -> list[float]:
        """How long each measured task of the function has been running, s."""
        now_s = time.perf_counter()
        plans = [p for p in list(self._plans.values()) if p.function == function and p.began_s and p.cost is None]
        return [now_s - plan.began_s for plan in plans if plan.setting == self.setting]

    def _plan(self, key: Key) -> None:
        task = self._worker.state.tasks[key]
        function = task.prefix
        since_s, count = self._samples.get(function, (float("-inf"), 0))
        now_s = self._clock()
        if now_s - since_s >= 60.0:
            since_s, count = now_s, 0
        is_full = count < SAMPLES_PER_MINUTE
        if is_full:
            self._samples[function] = (since_s, count + 1)
        elif function != self.follow:
            return
        self._plans[key] = _Plan(function, sum(d.nbytes or 0 for d in task.dependencies), is_full)

    def _forget(self, threads: ActiveThreads, key: Key) -> None:
        # A task that began with the dict before ours takes itself out of that one only.
        with self._worker.active_threads_lock:
            for ident in [ident for ident, running in threads.items() if running == key]:
                threads.pop(ident)

    # -- in the thread of a task -----------------------------------------------------------------------------------

    def begins(self, key: Key) -> Callable[[], None] | None:
        """A task begins in this thread. Never raises: that would be the task's end."""
        try:
            plan = self._plans.get(key)
            undo = None
            if self.in_thread is not None:
                undo = self.in_thread(plan.function if plan is not None else key_split(key))
            if plan is not None:
                self._begin(plan)
        except Exception as error:  # noqa: BLE001 - the agent raises it in its next cycle
            self._fail(error)
            return None
        return undo

    def ends(self, key: Key) -> None:
        """It has ended. Never raises either."""
        try:
            if (plan := self._plans.get(key)) is not None and plan.began_s:
                self._end(plan)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        if self._threads is not None:
            self._threads.owner = None

    def _begin(self, plan: _Plan) -> None:
        plan.setting = self.setting
        if plan.is_full:
            plan.reads = self._reads()
            if _THREAD is not None:
                used = resource.getrusage(_THREAD)
                plan.page_faults, plan.preemptions = used.ru_minflt, used.ru_nivcsw
            plan.gc_s = self._gc_s
            plan.side_by_side = len(self._threads or ())
            plan.process_cpu_s = time.process_time()
            plan.reading = self.counters.read()
        plan.cpu_s = time.thread_time()
        plan.began_s = time.perf_counter()

    def _end(self, plan: _Plan) -> None:
        wall_s, cpu_s = time.perf_counter() - plan.began_s, time.thread_time() - plan.cpu_s
        setting = plan.setting if plan.setting == self.setting else -1
        cost = Cost(plan.function, wall_s, cpu_s, setting, input_bytes=plan.input_bytes)
        if plan.is_full:
            cost.is_full = True
            cost.counted = self.counters.between(plan.reading, self.counters.read())
            cost.process_cpu_s = time.process_time() - plan.process_cpu_s
            cost.side_by_side = max(plan.side_by_side, len(self._threads or ()))
            cost.gc_s = self._gc_s - plan.gc_s
            if _THREAD is not None:
                used = resource.getrusage(_THREAD)
                cost.page_faults = used.ru_minflt - plan.page_faults
                cost.preemptions = used.ru_nivcsw - plan.preemptions
            cost.tunables = tuple(name for name, n in self._reads().items() if n != plan.reads.get(name))
        plan.cost = cost

    def _on_gc(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._gc_began_s = time.perf_counter()
        else:
            self._gc_s += time.perf_counter() - self._gc_began_s


def why_not(worker: Worker) -> str | None:
    """The reason why tasks of this worker can't be measured; None if they can."""
    run = getattr(dask_worker, "_run_task", None)
    has_names = isinstance(getattr(worker, "active_threads", None), dict) and isinstance(
        getattr(worker, "active_threads_lock", None), type(threading.Lock())
    )
    if run is None or "active_threads" not in inspect.signature(run).parameters or not has_names:
        return "this version of Dask does not say in which thread a task runs (Worker.active_threads)"
    return None
