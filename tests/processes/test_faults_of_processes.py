"""Real worker processes that are stopped, hold the GIL, crash: what the nanny's witness says, and what comes of it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, KilledWorker, wait
from distributed.core import Status

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.protocol import Event, WorkerCleared, WorkerCondemned, WorkerDied, WorkerSuspected
from tests.support.nannies import processes
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True, scope="module")
def _tracker() -> None:
    """Python starts it with the first process, and keeps its pipe: that is no leftover of a test."""
    resource_tracker.ensure_running()


def events(scheduler: Any, kind: type[Event]) -> list[Any]:
    return [event for event in list(scheduler.plugins["swarm"].loop.history) if isinstance(event, kind)]


def nap(number: int, seconds: float = 0.1) -> int:
    time.sleep(seconds)
    return number


def holds_gil(seconds: int, marker: str) -> str:
    """Sleep in C without letting go of the interpreter: the process stands still, event loop and all."""
    with Path(marker).open("a") as file:
        file.write("x")
    ctypes.PyDLL(None).sleep(seconds)
    return "done"


def crashes(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGSEGV)


def add(*numbers: int) -> int:
    return sum(numbers)


def test_a_stopped_worker_is_replaced_within_seconds_and_its_results_are_made_again() -> None:
    with processes(3) as (cluster, client):
        scheduler = cluster.scheduler
        alone = client.submit(nap, 1, pure=False)
        wait(alone)
        (holder,) = client.who_has([alone])[alone.key]
        pids = client.run(os.getpid)
        began_s = time.monotonic()
        os.kill(pids[holder], signal.SIGSTOP)
        sums = client.map(add, [alone] * 10, range(10), pure=False)
        assert client.gather(sums) == list(range(1, 11))
        assert time.monotonic() - began_s < 15, "stock Dask takes minutes"
        (condemned,) = events(scheduler, WorkerCondemned)
        assert (condemned.worker, condemned.verdict) == (holder, "stopped")
        wait_until(lambda: len(scheduler.workers) == 3, "its nanny has started another", timeout_s=30)
        assert not Path(f"/proc/{pids[holder]}").exists(), "what stood still is gone"


def test_a_worker_that_holds_the_gil_is_suspected_but_never_evicted(tmp_path: Path) -> None:
    with processes(2) as (cluster, client):
        scheduler = cluster.scheduler
        before = set(scheduler.workers)
        marker = tmp_path / "starts"
        holder = client.submit(holds_gil, 6, str(marker), pure=False)
        wait_until(marker.exists, "it has begun", timeout_s=10)
        others = client.map(nap, range(20), pure=False)
        assert client.gather(others) == list(range(20))
        assert not holder.done(), "they went round it"
        assert holder.result(timeout=30) == "done"
        assert marker.read_text() == "x", "it ran once"
        assert set(scheduler.workers) == before
        assert events(scheduler, WorkerSuspected)
        wait_until(lambda: events(scheduler, WorkerCleared), "it is trusted again", timeout_s=10)
        assert not events(scheduler, WorkerCondemned)


@pytest.mark.parametrize(("how", "said"), [("exit", "exit status 7"), ("signal", "SIGSEGV")])
def test_a_task_that_crashes_its_worker_is_given_up_after_two_and_nobody_else_suffers(how: str, said: str) -> None:
    with processes(3) as (cluster, client):
        scheduler = cluster.scheduler
        before = set(scheduler.workers)
        innocent = client.map(nap, range(30), seconds=0.05, pure=False)
        bad = client.submit(crashes, how, pure=False)
        innocent += client.map(nap, range(30, 60), seconds=0.05, pure=False)
        assert client.gather(innocent) == list(range(60))
        with pytest.raises(KilledWorker) as caught:
            bad.result(timeout=40)
        assert said in "".join(caught.value.__notes__)
        deaths = events(scheduler, WorkerDied)
        assert len(deaths) == 2, [(death.worker, death.cause, death.running) for death in deaths]
        assert all(death.running == (bad.key,) for death in deaths), "and not what merely waited there"
        assert all(said in death.cause for death in deaths)
        assert any("Registered to" in line for death in deaths for line in death.last_lines)
        wait_until(lambda: len(scheduler.workers) == 3, "the nannies have started others", timeout_s=30)
        assert len(set(scheduler.workers) - before) <= 2


def test_a_worker_that_somebody_kills_is_nobodys_fault() -> None:
    """Stock Dask fails a task whose worker was killed four times, whoever did it."""
    with processes(2) as (cluster, client):
        scheduler = cluster.scheduler
        long = client.submit(nap, 7, 3.0, pure=False)
        for _ in range(2):
            wait_until(lambda: any(worker.processing for worker in scheduler.workers.values()), "it runs", timeout_s=30)
            (worker,) = [worker for worker in scheduler.workers.values() if worker.processing]
            known = len(events(scheduler, WorkerDied))
            pids = client.run(os.getpid, workers=[worker.address])
            os.kill(pids[worker.address], signal.SIGKILL)
            wait_until(lambda known=known: len(events(scheduler, WorkerDied)) > known, "its nanny told", timeout_s=20)
        assert long.result(timeout=40) == 7
        assert all("SIGKILL" in death.cause for death in events(scheduler, WorkerDied))
        assert scheduler.tasks[long.key].suspicious == 0


def test_without_nannies_a_neighbour_on_the_host_is_the_witness() -> None:
    with (
        LocalProcesses(ClusterSpec(workers=3, threads_per_worker=1, nanny=False, dashboard_port=None)) as local,
        Client(local.address) as client,
    ):
        client.wait_for_workers(3)
        held = client.submit(nap, 1, pure=False)
        wait(held)
        (holder,) = client.who_has([held])[held.key]
        pid = client.run(os.getpid)[holder]
        os.kill(pid, signal.SIGSTOP)
        try:
            sums = client.map(add, [held] * 10, range(10), pure=False)
            assert client.gather(sums) == list(range(1, 11))
            assert holder not in client.scheduler_info()["workers"]
        finally:
            os.kill(pid, signal.SIGCONT)


def test_the_end_of_a_worker_that_had_nothing_to_do_is_told_too() -> None:
    with processes(2) as (cluster, client):
        scheduler = cluster.scheduler
        rate = scheduler.plugins["swarm"].mind.replicating._hazard.rate
        victim, pid = next(iter(client.run(os.getpid).items()))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: events(scheduler, WorkerDied), "its nanny told", timeout_s=20)
        (death,) = events(scheduler, WorkerDied)
        assert (death.worker, death.running) == (victim, ())
        assert "SIGKILL" in death.cause
        assert scheduler.plugins["swarm"].mind.replicating._hazard.rate > 100 * rate
        wait_until(lambda: len(scheduler.workers) == 2, "its nanny has started another", timeout_s=30)
        client.retire_workers(list(scheduler.workers)[:1])
        wait_until(lambda: len(scheduler.workers) == 1, "it is retired", timeout_s=20)
        nannies = cluster.workers.values()
        wait_until(
            lambda: sum(nanny.status is Status.closed for nanny in nannies) == 1, "so has its nanny", timeout_s=20
        )
    assert len(events(scheduler, WorkerDied)) == 1, "who is asked to leave has not died"
