"""Workers in processes of their own, with nannies: threads that are lost come back, memory is admitted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker

from tests.support.waiting import wait_until

MB = 10**6


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Python starts it with the first process, and keeps its pipe: that is no leftover of a test."""
    resource_tracker.ensure_running()


@contextmanager
def processes(workers: int, threads: int, memory_limit: str) -> Iterator[tuple[Any, Client]]:
    """The scheduler lives in this process, the workers do not."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=memory_limit,
            processes=True,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"preload": ["scheduler_plugins"]},
            preload=["swarm.agents"],
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster.scheduler, client


def hang_at_first(marker: str) -> str:
    """Never end where nobody has been before."""
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(600.0)
    return str(get_worker().id)


def transient(number: int, nbytes: int) -> int:
    """Take memory for a moment."""
    block = np.ones(nbytes, dtype=np.uint8)
    time.sleep(0.4)
    return number + int(block[-1])


def test_a_worker_whose_only_thread_hangs_is_restarted_by_its_nanny(tmp_path: Path) -> None:
    with processes(2, 1, "2GiB") as (scheduler, client):
        workers = dict(scheduler.workers)
        with dask.annotate(swarm_timeout="1s", swarm_backoff="0s"):
            future = client.submit(hang_at_first, str(tmp_path / "marker"), pure=False)
        by = future.result(timeout=30)
        (lost,) = [worker for worker in workers.values() if worker.server_id != by]
        wait_until(lambda: lost.address not in scheduler.workers, "its nanny has ended it", timeout_s=40)
        wait_until(lambda: len(scheduler.workers) == 2, "its nanny has started it again", timeout_s=40)
        assert {by} < {worker.server_id for worker in scheduler.workers.values()}
        assert set(client.gather(client.map(str, range(20), pure=False))) == {str(i) for i in range(20)}


def test_tasks_of_350_mb_on_workers_of_1_gib_get_through() -> None:
    """On stock Dask, nearly all end in `KilledWorker`."""
    with processes(2, 4, "1GiB") as (scheduler, client):
        first = set(scheduler.workers)
        cold = client.map(transient, range(12), nbytes=350 * MB, pure=False)
        assert client.gather(cold) == [number + 1 for number in range(12)]
        survived = set(scheduler.workers)
        assert len(first - survived) <= 2
        warm = client.map(transient, range(12), nbytes=350 * MB, pure=False)
        assert client.gather(warm) == [number + 1 for number in range(12)]
        assert set(scheduler.workers) == survived
