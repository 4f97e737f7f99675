"""The page as a user meets it: real processes, a plain `dask scheduler` that was already running, real telemetry."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import swarm
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from tests.support.browser import Browser


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalProcesses]:
    env = {"DASK_SWARM__PERFORMANCE_THRESHOLDS__MEMORY_CRITICAL": "1"}  # crossed by any worker with a small limit
    spec = ClusterSpec(workers=2, threads_per_worker=1, memory_limit="300MiB", scheduler_preload=(), env=env)
    with LocalProcesses(spec) as processes:
        yield processes


def test_workers_alert_and_a_run_in_progress(cluster: LocalProcesses, browser: Browser) -> None:
    with swarm.connect(cluster.address) as connected:
        assert connected.page is not None
        browser.open(connected.page)
        browser.wait_text("body", "worker-0")
        browser.wait_text("body", "worker-1")
        browser.wait_text("body", "memory of worker worker-0")
        run = connected.map(time.sleep, [0.05] * 60, name="naps")
        browser.wait_text("body", "naps")
        assert run.result(timeout=60) == [None] * 60
        browser.wait_text("body", "60")
        browser.wait_text("body", "finished")


def test_dasks_own_pages_stay_and_link_to_ours(cluster: LocalProcesses, browser: Browser) -> None:
    assert cluster.dashboard_link is not None
    browser.open(cluster.dashboard_link)
    browser.wait("[...document.querySelectorAll('a')].some(a => a.href.endsWith('/swarm'))", "a link to our page")
