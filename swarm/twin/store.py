"""The memory of a simulated worker: its results, what it spills, when it pauses, resumes or dies."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from swarm.twin.models import Key

if TYPE_CHECKING:
    from swarm.twin.worker import SimulatedWorker

CHECK_S = 0.1
"""`distributed.worker.memory.monitor-interval`."""


class Result:
    """Stands for the result of a task: which task, made where by which execution, and what it weighs."""

    __slots__ = ("execution", "key", "nbytes", "worker")

    def __init__(self, key: Key, nbytes: int, worker: str, execution: int) -> None:
        self.key = key
        self.nbytes = nbytes
        self.worker = worker
        self.execution = execution

    def __sizeof__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        return f"<result of {self.key!r} from {self.worker}>"


class Store(dict[Key, Any]):
    """`WorkerState.data` of a worker with a memory limit: as Dask's `SpillBuffer` and its two memory managers.

    The interpreter, results that are not spilled and what running tasks need for a moment count as memory.
    """

    def __init__(self, worker: SimulatedWorker) -> None:
        super().__init__()
        self._worker = worker
        self._model = worker.model.memory
        self._in_memory: OrderedDict[Key, None] = OrderedDict()
        """What is not spilled; first what was not used for longest."""
        self._spilled: dict[Key, int] = {}
        self._began_s = worker.loop.now_s
        self._is_watched = False
        """Whether a look of the monitors is planned."""
        self.spilled_bytes = 0
        self.running_bytes = 0
        """What running tasks need beside their inputs and outputs."""
        self.peak_bytes = 0

    def __setitem__(self, key: Key, value: Any) -> None:
        super().__setitem__(key, value)
        self._in_memory[key] = None

    def __delitem__(self, key: Key) -> None:
        super().__delitem__(key)
        self._gone(key)

    def pop(self, key: Key, *default: Any) -> Any:
        self._gone(key)
        return super().pop(key, *default)

    def _gone(self, key: Key) -> None:
        self._in_memory.pop(key, None)
        self.spilled_bytes -= self._spilled.pop(key, 0)

    @property
    def used_bytes(self) -> int:
        """Of the process."""
        return self._model.baseline_bytes + self._in_memory_bytes + self.running_bytes

    @property
    def _in_memory_bytes(self) -> int:
        return self._worker.state.nbytes - self.spilled_bytes

    def check(self) -> None:
        """Something came or went: do what Dask and the kernel do at once, and plan what its monitors do later."""
        model, worker = self._model, self._worker
        used_bytes = self.used_bytes
        self.peak_bytes = max(self.peak_bytes, used_bytes)
        if used_bytes > model.limit_bytes:
            worker.end("memory")
            return
        target_bytes = model.target * model.limit_bytes
        if self._in_memory_bytes > target_bytes:
            self._spill(self._in_memory_bytes - target_bytes)
        if not self._is_watched and self._is_something_due():
            self._is_watched = True
            worker.loop.schedule(self._next_look_s(), self._look)

    def _next_look_s(self) -> float:
        """The monitors look at fixed intervals from the start on; only looks that find something are made here."""
        looks = math.floor((self._worker.loop.now_s - self._began_s) / CHECK_S + 1e-3)
        return self._began_s + (looks + 1) * CHECK_S

    def _is_something_due(self) -> bool:
        model, status, ratio = self._model, self._worker.status, self.used_bytes / self._model.limit_bytes
        return (
            (ratio > model.pause if status is Status.running else status is Status.paused and ratio <= model.pause)
            or (ratio > model.spill and bool(self._in_memory))
            or (ratio > model.terminate and self._worker.model.nanny)
        )

    def _look(self) -> None:
        """As `NannyMemoryManager.memory_monitor`, and as that of `WorkerMemoryManager` unless the worker is frozen."""
        self._is_watched = False
        model, worker = self._model, self._worker
        if not worker.is_alive:
            return
        if worker.model.nanny and self.used_bytes > model.terminate * model.limit_bytes:
            worker.end("memory")
        elif worker.process.frozen:
            self._is_watched = True
            worker.process.backlog.append((self._look, ()))
        else:
            worker.local(self._monitor)

    def _monitor(self) -> None:
        """Pause or resume, and spill."""
        model, worker, used_bytes = self._model, self._worker, self.used_bytes
        if used_bytes > model.pause * model.limit_bytes:
            if worker.status is Status.running:
                worker.set_status(Status.paused, f"worker-memory-pause-{worker.loop.now_s}")
        elif worker.status is Status.paused:
            worker.set_status(Status.running, f"worker-memory-resume-{worker.loop.now_s}")
        if used_bytes > model.spill * model.limit_bytes:
            self._spill(used_bytes - model.target * model.limit_bytes)
        self.check()

    def _spill(self, size_bytes: float) -> None:
        """Write the results that were not used for longest to disk."""
        while size_bytes > 0 and self._in_memory:
            key, _ = self._in_memory.popitem(last=False)
            self._spilled[key] = size = self._worker.state.tasks[key].get_nbytes()
            self.spilled_bytes += size
            size_bytes -= size

    def read_back(self, keys: Iterable[Key]) -> float:
        """Bring spilled results back; returns how long the disk takes, in seconds."""
        size = 0
        for key in keys:
            if key in self:
                size += self._spilled.pop(key, 0)
                self._in_memory[key] = None
                self._in_memory.move_to_end(key)
        self.spilled_bytes -= size
        return size / self._model.disk_bytes_per_s
