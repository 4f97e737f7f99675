"""Tasks and workers as Dask's scheduler has them, without a scheduler that runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from dask._task_spec import Task
from distributed import Scheduler
from distributed.core import Status
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState, WorkerState

from scheduler_plugins.on_dask.estimates import Estimates

UNKNOWN_S = 0.5


class Tasks:
    """Makes them, and plays the part of the scheduler."""

    def __init__(self) -> None:
        self._prefixes: dict[str, TaskPrefix] = {}
        self._groups: dict[str, TaskGroup] = {}
        self._number = count()
        self.scheduler = cast(
            "Scheduler",
            SimpleNamespace(UNKNOWN_TASK_DURATION=UNKNOWN_S, bandwidth=1e8, bandwidth_workers={}, workers={}),
        )

    def worker(self, address: str) -> WorkerState:
        if address not in self.scheduler.workers:
            self.scheduler.workers[address] = WorkerState(
                address=address,
                status=Status.running,
                pid=1,
                name=address,
                nthreads=1,
                memory_limit=10**9,
                local_directory="/",
                nanny="",
                server_id=address,
            )
        return self.scheduler.workers[address]

    def task(
        self,
        function: Callable[..., Any] | None,
        *args: Any,
        prefix: str = "",
        inputs: Sequence[TaskState] = (),
        nbytes: int | None = None,
        held_by: Sequence[WorkerState] = (),
        **kwargs: Any,
    ) -> TaskState:
        """One that is waiting, or has a result of so many bytes."""
        name = prefix or getattr(function, "__name__", "data")
        known = self._prefixes.setdefault(name, TaskPrefix(name))
        group = self._groups.setdefault(name, TaskGroup(name, known))
        key = f"{name}-{next(self._number)}"
        spec = None if function is None else Task(key, function, *args, **kwargs)
        ts = TaskState(key, spec, "waiting" if nbytes is None else "memory", group, validate=False)
        for dependency in inputs:
            ts.add_dependency(dependency)
        if nbytes is not None:
            ts.set_nbytes(nbytes)
        for ws in held_by:
            ws.add_replica(ts)
        return ts


def details(
    duration_s: float | None, *, nbytes: float = 1000, transfers: Sequence[tuple[str, float]] = (), **swarm: Any
) -> dict[str, Any]:
    """What Dask tells a plugin of a task that has finished; `swarm` is what the worker's agent adds."""
    began_s = 1e9
    spans: list[dict[str, Any]] = [
        {"action": "transfer", "start": began_s, "stop": began_s + seconds, "source": source}
        for source, seconds in transfers
    ]
    if duration_s is not None:
        spans.append({"action": "compute", "start": began_s, "stop": began_s + duration_s})
    return {"startstops": spans, "nbytes": nbytes, "metadata": {"swarm": swarm} if swarm else {}}


def learn(estimates: Estimates, ts: TaskState, duration_s: float, worker: str = "", **more: Any) -> None:
    estimates.finished(ts, worker, details(duration_s, **more))
