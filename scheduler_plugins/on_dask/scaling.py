"""Dask's `Adaptive` asks its scheduler three things; this answers them on the instance.

How many workers there should be (`adaptive_target`), which may go (`workers_to_close`), and to let them go
(`retire_workers`). So every kind of cluster that can `adapt` gains, wherever its `Adaptive` runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta
from distributed.protocol import pickle

from scheduler_plugins.decide.scale import FULL_RATIO, Demand, Holding, Scale, leaving

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

    from scheduler_plugins.on_dask.draining import Draining
    from scheduler_plugins.on_dask.mind import Mind

DRAIN_S = 30.0
"""Longest that a worker is kept, which is to go, for what runs there. `Adaptive` does nothing else meanwhile."""
MOST_TASKS = 200
"""Tasks that are looked at one by one."""
MOST_RESULTS = 1_000
"""Results of a worker that are looked at one by one."""

Key = Any
"""A function from a worker to its group, perhaps pickled; None: each is a group of its own."""
_HOOKS = ("adaptive_target", "workers_to_close", "retire_workers")


class Scaling:
    """Answers for Dask's scheduler how many workers there should be.

    Parameters
    ----------
    mind
        What knows what tasks will take; where it is off, Dask's own averages stand in.
    """

    def __init__(
        self, scheduler: Scheduler, mind: Mind, draining: Draining, on_failure: Callable[[Exception], None]
    ) -> None:
        self._scheduler: Any = scheduler
        self._mind = mind
        self._draining = draining
        self._on_failure = on_failure
        self._saved: dict[str, Any] = {}
        self.scale = Scale()

    @property
    def is_installed(self) -> bool:
        return bool(self._saved)

    def install(self) -> None:
        scheduler = self._scheduler
        self._saved = {name: scheduler.handlers[name] for name in _HOOKS}
        for name, ours in zip(_HOOKS, (self.target, self.to_close, self.retire), strict=True):
            setattr(scheduler, name, ours)
            scheduler.handlers[name] = ours

    def uninstall(self) -> None:
        """Give Dask its own answers back."""
        for name, dasks in self._saved.items():
            vars(self._scheduler).pop(name, None)
            self._scheduler.handlers[name] = dasks
        self._saved = {}

    def add_worker(self) -> None:
        self.scale.joined(time.monotonic())

    # -- what Dask asks ------------------------------------------------------------------------------------------------

    def target(self, target_duration: Any = None) -> int:
        """In place of `adaptive_target`."""
        try:
            if target_duration is None:
                target_duration = dask.config.get("distributed.adaptive.target-duration")
            target_s = float(parse_timedelta(target_duration))
            return self.scale.target(self._demand(), target_s, time.monotonic())
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            return int(self._dasks("adaptive_target", error)(target_duration=target_duration))

    def to_close(
        self,
        memory_ratio: float | None = None,
        n: int | None = None,
        key: Key = None,
        minimum: int | None = None,
        target: int | None = None,
        attribute: str = "address",
    ) -> list[Any]:
        """In place of `workers_to_close`, where it is `Adaptive` that asks: it says how many are to stay."""
        others = {"memory_ratio": memory_ratio, "n": n, "minimum": minimum, "key": key, "attribute": attribute}
        if target is None or n is not None or memory_ratio is not None:
            return list(self._saved["workers_to_close"](target=target, **others))
        try:
            return self._to_close(max(target, minimum or 0), key, attribute)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            return list(self._dasks("workers_to_close", error)(target=target, **others))

    async def retire(self, workers: Any = None, *, names: Any = None, **options: Any) -> Any:
        """In place of `retire_workers`: what runs on those that are named may end first."""
        dasks = self._saved["retire_workers"]
        going = self._named(workers, names)
        try:
            await self._draining.drain(going, DRAIN_S)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with ours, Dask goes on
            self._on_failure(error)
        try:
            return await dasks(workers, names=names, **options)
        finally:
            self._draining.stays(going)

    def _dasks(self, name: str, error: Exception) -> Callable[..., Any]:
        answer: Callable[..., Any] = self._saved[name]  # the guard may take it out
        self._on_failure(error)
        return answer

    # -- the parts of it -----------------------------------------------------------------------------------------------

    def _demand(self) -> Demand:
        scheduler = self._scheduler
        workers = scheduler.workers.values()
        count = len(workers)
        waiting = len(scheduler.queued) + len(scheduler.unrunnable)
        ready = waiting + sum(len(worker.processing) for worker in workers)
        if self._mind.is_on:
            unfinished = max(ready, len(self._mind.placing.ranks))
            work_s = self._work_s(ready, unfinished)
        else:
            unfinished = ready
            work_s = scheduler.total_occupancy + sum(
                scheduler._get_prefix_duration(task.prefix) for task in (*scheduler.queued, *scheduler.unrunnable)
            )
        return Demand(
            ready=ready,
            unfinished=unfinished,
            work_s=work_s,
            workers=count,
            busy=sum(1 for worker in workers if worker.processing),
            threads=scheduler.total_nthreads / count if count and scheduler.total_nthreads else 1.0,
            results_bytes=float(sum(max(worker.nbytes, len(worker.has_what)) for worker in workers)),
            limit_bytes=sum(worker.memory_limit for worker in workers) / count if count else 0.0,
        )

    def _work_s(self, ready: int, unfinished: int) -> float:
        """Of all unfinished tasks. They were ranked with what was known then: of some of the next, look again."""
        scheduler, ranks = self._scheduler, self._mind.placing.ranks
        known_s = ranks.remaining_s + (unfinished - len(ranks)) * scheduler.UNKNOWN_TASK_DURATION  # Dask's to place
        running = (task for worker in scheduler.workers.values() for task in worker.processing)
        sample = list(islice(chain(running, scheduler.queued, scheduler.unrunnable), MOST_TASKS))
        more_s = sum(self._mind.estimates.of(task).p50_s - ranks.seconds(task) for task in sample if task in ranks)
        return max(float(known_s + more_s * ready / max(len(sample), 1)), 0.0)

    def _to_close(self, target: int, key: Key, attribute: str) -> list[Any]:
        scheduler = self._scheduler
        group = pickle.loads(key) if isinstance(key, bytes) else key  # as Dask does: it comes from the cluster's owner
        able = [worker for worker in scheduler.workers.values() if not worker.long_running]
        for plugin in list(scheduler.plugins.values()):
            able = plugin.valid_workers_downscaling(scheduler, able)
        may_go = set(able)
        holdings = [
            Holding(
                worker=worker,
                group=worker.address if group is None else group(worker),
                is_idle=worker in may_go and not worker.processing and not worker.actors,
                unique_bytes=self._unique_bytes(worker),
                free_bytes=self._free_bytes(worker),
            )
            for worker in scheduler.workers.values()
        ]
        count = max(len(holdings) - target, 0)
        return [getattr(worker, attribute) for worker in leaving(holdings, count, lambda worker: str(worker.address))]  # type: ignore[attr-defined]

    @staticmethod
    def _unique_bytes(worker: WorkerState) -> float:
        if len(worker.has_what) > MOST_RESULTS:
            return float(worker.nbytes)
        # A result that takes no space is a result all the same.
        return float(sum(max(each.get_nbytes(), 1) for each in worker.has_what if len(each.who_has or ()) == 1))

    def _free_bytes(self, worker: WorkerState) -> float:
        """Memory in which it could take results: none where Dask would send it none."""
        if worker not in self._scheduler.running:
            return 0.0
        return max(FULL_RATIO * worker.memory_limit - worker.nbytes, 0.0) if worker.memory_limit else float("inf")

    def _named(self, workers: Any, names: Any) -> list[WorkerState]:
        known = self._scheduler.workers
        if names is not None:
            wanted = {str(name) for name in names}
            return [worker for worker in known.values() if str(worker.name) in wanted]
        return [known[address] for address in workers or () if address in known]
