"""What Dask's scheduler shows, as events of `swarm.protocol`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from distributed.comm.addressing import get_address_host

from swarm.protocol import ClusterSampled, Telemetry, TelemetryArrived, WorkerJoined

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Scheduler
    from distributed.scheduler import WorkerState


def worker_joined(state: WorkerState, *, has_agents: bool) -> WorkerJoined:
    """A worker registered."""
    return WorkerJoined(
        at_s=time.time(),
        worker=state.address,
        name=str(state.name),
        host=get_address_host(state.address),
        threads=state.nthreads,
        memory_limit_bytes=state.memory_limit or 0,
        has_agents=has_agents,
    )


class TelemetryEar:
    """The scheduler's end of the heartbeat piggyback (`Worker.extensions` ↔ `Scheduler.extensions`).

    It must never raise and never be taken away while workers send to it: Dask closes a worker whose extension has no
    twin on the scheduler. `hear` is set to None instead when swarm goes.
    """

    def __init__(self, hear: Callable[[str, object], None]) -> None:
        self.hear: Callable[[str, object], None] | None = hear

    def heartbeat(self, ws: WorkerState, data: object) -> None:
        if self.hear is not None and data is not None:
            self.hear(ws.address, data)


def telemetry_arrived(worker: str, data: object) -> TelemetryArrived:
    """A heartbeat brought a sample; raises `ProtocolError` when it is none."""
    return TelemetryArrived(at_s=time.time(), worker=worker, telemetry=Telemetry.from_wire(data))


class ClusterSampler:
    """Takes the totals of the scheduler: O(workers + task groups), for the control cycle only."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._at_s = time.monotonic()
        self._cpu_s = time.process_time()

    def sample(self, finished: int, erred: int, period_s: float) -> ClusterSampled:
        """`period_s`: time that should lie between two calls; what is beyond that is the lag of the event loop."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        elapsed_s = max(now_s - self._at_s, 1e-6)
        used_s, self._at_s, self._cpu_s = cpu_s - self._cpu_s, now_s, cpu_s
        scheduler = self._scheduler
        return ClusterSampled(
            at_s=time.time(),
            workers=len(scheduler.workers),
            threads=scheduler.total_nthreads,
            tasks_finished=finished,
            tasks_erred=erred,
            tasks_processing=sum(len(ws.processing) for ws in scheduler.workers.values()),
            tasks_queued=len(scheduler.queued),
            tasks_waiting=sum(group.states["waiting"] for group in scheduler.task_groups.values()),
            scheduler_cpu_percent=100.0 * used_s / elapsed_s,
            loop_lag_s=max(0.0, elapsed_s - period_s),
        )
