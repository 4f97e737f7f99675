"""A task that hangs on its first attempt, on real processes: its copy finishes, its thread is held until it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, get_worker

from tests.support.copying import ByRule
from tests.support.processes import wait_until

HANGS_S = 12.0


def nap(number: int, marker: str = "", release: str = "") -> tuple[int, str]:
    """Take 0.1 s, and the first attempt with a marker as long as nobody releases it."""
    if marker:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            until_s = time.monotonic() + HANGS_S
            while not Path(release).exists() and time.monotonic() < until_s:
                time.sleep(0.02)
    time.sleep(0.1)
    return number, str(get_worker().name)


@pytest.fixture(autouse=True, scope="module")
def _resource_tracker() -> None:
    """Python's own process, which stays until the end: started before anybody counts what is left behind."""
    resource_tracker.ensure_running()


@pytest.fixture
def cluster() -> Iterator[tuple[Client, ByRule, Any]]:
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as local,
        Client(local) as client,
    ):
        client.register_plugin(ByRule())
        yield client, local.scheduler.plugins[ByRule.name], local.scheduler


def test_a_task_that_hangs_is_copied(cluster: tuple[Client, ByRule, Any], tmp_path: Path) -> None:
    client, plugin, scheduler = cluster
    marker, release = str(tmp_path / "hangs"), str(tmp_path / "release")
    began_s = time.monotonic()
    futures = [client.submit(nap, i, *([marker, release] if i == 5 else ()), pure=False) for i in range(30)]
    results = client.gather(futures)
    took_s = time.monotonic() - began_s
    assert [number for number, _ in results] == list(range(30))
    assert took_s < HANGS_S / 2
    ((copying, end),) = plugin.ends
    assert (copying.task.key, end) == (futures[5].key, "won")
    assert results[5][1] == str(copying.second.name)

    lost = copying.first
    assert plugin.copies.held.keys(lost) == {futures[5].key}
    following = client.gather([client.submit(nap, i, pure=False) for i in range(20)], errors="raise")
    assert [number for number, _ in following] == list(range(20))
    assert str(lost.name) not in {worker for _, worker in following}
    assert time.monotonic() - began_s < HANGS_S

    Path(release).touch()
    wait_until(lambda: plugin.copies.held.count(lost) == 0, "the thread has ended, and the heartbeat said so")
    again = client.gather([client.submit(nap, i, pure=False) for i in range(20)])
    assert {worker for _, worker in again} == {str(ws.name) for ws in scheduler.workers.values()}
    assert scheduler.tasks[futures[5].key].who_has == {copying.second}
    assert len(plugin.ends) == 1
    assert not plugin.failures
