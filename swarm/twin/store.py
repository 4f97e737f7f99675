"""The memory of a simulated worker: its results, what it spills, when it pauses, resumes or dies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from swarm.twin.models import Key

if TYPE_CHECKING:
    from swarm.twin.worker import SimulatedWorker

CHECK_S = 0.1
"""`distributed.worker.memory.monitor-interval`: how soon a paused worker looks again."""


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
        self._oldest: OrderedDict[Key, None] = OrderedDict()
        self._spilled: dict[Key, int] = {}
        self.spilled_bytes = 0
        self.running_bytes = 0
        """What running tasks need beside their inputs and outputs."""
        self.peak_bytes = 0

    def __setitem__(self, key: Key, value: Any) -> None:
        super().__setitem__(key, value)
        self._oldest[key] = None

    def __delitem__(self, key: Key) -> None:
        super().__delitem__(key)
        self._gone(key)

    def pop(self, key: Key, *default: Any) -> Any:
        self._gone(key)
        return super().pop(key, *default)

    def _gone(self, key: Key) -> None:
        self._oldest.pop(key, None)
        self.spilled_bytes -= self._spilled.pop(key, 0)

    @property
    def used_bytes(self) -> int:
        """Of the process."""
        managed_bytes = self._worker.state.nbytes - self.spilled_bytes
        return self._model.baseline_bytes + managed_bytes + self.running_bytes

    def check(self) -> None:
        """Spill, pause, resume or die."""
        model, worker = self._model, self._worker
        limit = model.limit_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        # A nanny kills at the threshold; without one the kernel does at the limit.
        if self.used_bytes > (model.terminate * limit if worker.model.nanny else limit):
            worker.end("memory")
            return
        managed_bytes = worker.state.nbytes - self.spilled_bytes
        if self.used_bytes > model.spill * limit or managed_bytes > model.target * limit:
            self._spill(model.target * limit)
        if self.used_bytes > model.pause * limit:
            if worker.status is Status.running:
                worker.set_status(Status.paused, f"worker-memory-pause-{worker.loop.now_s}")
                worker.loop.schedule(worker.loop.now_s + CHECK_S, self._look_again)
        elif worker.status is Status.paused:
            worker.set_status(Status.running, f"worker-memory-resume-{worker.loop.now_s}")

    def _look_again(self) -> None:
        worker = self._worker
        if worker.is_alive and worker.status is Status.paused:
            if not worker.process.frozen:
                self.check()
            if worker.is_alive and worker.status is Status.paused:  # type: ignore[redundant-expr]
                worker.loop.schedule(worker.loop.now_s + CHECK_S, self._look_again)

    def _spill(self, down_to_bytes: float) -> None:
        """Write the oldest results to disk until the process is small enough."""
        for key in self._oldest:
            if self.used_bytes <= down_to_bytes:
                return
            if key not in self._spilled:
                size = getattr(self[key], "nbytes", 0)
                self._spilled[key] = size
                self.spilled_bytes += size

    def read_back(self, keys: Iterable[Key]) -> float:
        """Bring spilled results back; returns how long the disk takes, in seconds."""
        size = sum(self._spilled.pop(key) for key in keys if key in self._spilled)
        self.spilled_bytes -= size
        return size / self._model.disk_bytes_per_s
