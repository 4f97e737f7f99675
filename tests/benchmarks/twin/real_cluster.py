"""The same work on a real cluster of processes: tasks that sleep for as long as they cost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dask._task_spec import Task, TaskRef
from distributed import Client, wait

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.twin.faults import Crash, Fault, Leave
from swarm.twin.work import Work
from tests.benchmarks.twin.naps import nap

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    makespan_s: float
    steals: int


@contextmanager
def cluster(workers: int) -> Iterator[tuple[LocalProcesses, Client]]:
    """Stock Dask, one thread per worker, without nannies."""
    spec = ClusterSpec(
        workers=workers,
        threads_per_worker=1,
        nanny=False,
        dashboard_port=None,
        scheduler_preload=(),
        worker_preload=(),
    )
    with LocalProcesses(spec) as processes, Client(processes.address, set_as_default=False) as client:
        client.run(nap, 0.0, 0)  # the workers import the function
        yield processes, client


def measure(processes: LocalProcesses, client: Client, work: Work, faults: tuple[Fault, ...] = ()) -> Measured:
    """Run the work once, with the same faults at the same times."""
    graph = {
        key: Task(key, nap, work.costs[key].work_s, work.costs[key].output_bytes, *map(TaskRef, needs))
        for key, needs in work.dependencies.items()
    }
    steals_before = _steals(client)
    timers = [threading.Timer(fault.at_s, _inflict, (processes, client, fault)) for fault in faults]
    began_s = time.perf_counter()
    for timer in timers:
        timer.start()
    futures = client.get(graph, list(work.wanted), sync=False)
    with client.as_current():
        wait(futures, timeout=TIMEOUT_S)
    took_s = time.perf_counter() - began_s
    assert all(future.status == "finished" for future in futures)
    for timer in timers:
        timer.join()
    steals = _steals(client) - steals_before
    del futures
    deadline_s = time.monotonic() + TIMEOUT_S
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return Measured(took_s, steals)


def _inflict(processes: LocalProcesses, client: Client, fault: Fault) -> None:
    name = f"worker-{fault.worker.removeprefix('w')}"  # type: ignore[attr-defined]
    match fault:
        case Crash():
            os.kill(processes.processes[name], signal.SIGKILL)
        case Leave():
            client.retire_workers(names=[name])
        case _:
            raise NotImplementedError(fault)


def _steals(client: Client) -> int:
    events = client.get_events("stealing")
    return sum(1 for _, event in events for entry in _flat(event) if entry and entry[0] == "confirm")


def _flat(event: object) -> Iterator[tuple[object, ...]]:
    """Dask logs single moves and lists of them."""
    if isinstance(event, list):
        for each in event:
            yield from _flat(each)
    elif isinstance(event, tuple):
        if event and isinstance(event[0], (tuple, list)):
            for each in event:
                yield from _flat(each)
        else:
            yield event
