"""What a cluster specification allows, and the command lines it becomes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from swarm.deploy.spec import ClusterSpec, scheduler_command, worker_command
from swarm.errors import SettingsError


def options(command: list[str], name: str) -> list[str]:
    return [value for option, value in pairwise(command) if option == name]


def scheduler(spec: ClusterSpec) -> list[str]:
    return scheduler_command(spec, scheduler_file=Path("s.json"), port=spec.port, dashboard_port=spec.dashboard_port)


def worker(spec: ClusterSpec) -> list[str]:
    return worker_command(spec, name="worker-0", address="tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 65536}, "port is 65536, must be 0 to 65535"),
        ({"dashboard_port": -1}, "dashboard_port is -1"),
        ({"port": 8787, "dashboard_port": 8787}, "both 8787"),
        ({"workers": 0}, "workers is 0, must be 1 or more"),
        ({"threads_per_worker": 0}, "threads_per_worker is 0"),
    ],
)
def test_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ClusterSpec(**given)


def test_shape_follows_the_machine() -> None:
    workers, threads = ClusterSpec().shape
    assert workers * threads == CPU_COUNT
    assert ClusterSpec(workers=1).shape == (1, CPU_COUNT)
    assert ClusterSpec(workers=CPU_COUNT + 1).shape == (CPU_COUNT + 1, 1)
    assert ClusterSpec(threads_per_worker=CPU_COUNT).shape == (1, CPU_COUNT)
    assert ClusterSpec(workers=3, threads_per_worker=5).shape == (3, 5)


def test_memory_is_shared_out_evenly_unless_given() -> None:
    assert options(worker(ClusterSpec(workers=4)), "--memory-limit") == [str(MEMORY_LIMIT // 4)]
    assert options(worker(ClusterSpec(workers=4, memory_limit="1 GiB")), "--memory-limit") == ["1 GiB"]


def test_no_dashboard_does_not_take_port_8787_either() -> None:
    command = scheduler(ClusterSpec(dashboard_port=None))
    assert "--no-dashboard" in command
    assert options(command, "--dashboard-address") == ["127.0.0.1:0"]


def test_the_leash_is_on_the_process_that_we_start() -> None:
    nanny, bare = worker(ClusterSpec()), worker(ClusterSpec(nanny=False))
    assert options(nanny, "--preload-nanny") == ["swarm.deploy.leash"]
    assert options(nanny, "--preload") == ["swarm.agents"]
    assert options(bare, "--preload") == ["swarm.deploy.leash", "swarm.agents"]
    assert "--no-nanny" in bare
    assert options(scheduler(ClusterSpec()), "--preload") == ["swarm.deploy.leash", "scheduler_plugins"]


def test_preloads_of_the_dask_configuration_stay() -> None:
    with dask.config.set({"distributed.worker.preload": ["theirs"], "distributed.scheduler.preload": "also_theirs"}):
        assert options(worker(ClusterSpec()), "--preload") == ["theirs", "swarm.agents"]
        assert options(scheduler(ClusterSpec()), "--preload")[1] == "also_theirs"


def test_workers_listen_where_the_scheduler_does_unless_that_is_everywhere() -> None:
    assert options(worker(ClusterSpec()), "--host") == ["127.0.0.1"]
    assert options(worker(ClusterSpec(host="0.0.0.0")), "--host") == []
