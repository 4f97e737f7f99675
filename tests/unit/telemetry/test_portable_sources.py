"""The sources for machines without procfs work wherever psutil does, so also here."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from swarm.protocol import Telemetry
from swarm.telemetry.sampler import sources_of
from swarm.telemetry.sources.portable import PortableHost, PortableWorker
from swarm.telemetry.sources.source import SourceAbsent


def test_other_platforms_use_them(tmp_path: Path) -> None:
    values: dict[str, float | int | None] = {}
    for source in sources_of("darwin", str(tmp_path), None):
        source.open(Path("/"))
        values.update(source.read(1.0))
        source.close()
    telemetry = Telemetry.from_wire({"taken_at_s": 1.0} | {k: v for k, v in values.items() if v is not None})
    assert telemetry.host_memory_total_bytes == psutil.virtual_memory().total
    assert telemetry.host_cpu_count == psutil.cpu_count()
    assert telemetry.worker_memory_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert telemetry.host_disk_free_bytes is not None


def test_rates_need_two_readings() -> None:
    host, worker = PortableHost(), PortableWorker()
    for source in (host, worker):
        source.open(Path("/"))
        source.read(0.0)
    deadline = time.monotonic() + 5
    while (share := host.read(time.monotonic())["host_cpu_percent"]) is None:
        assert time.monotonic() < deadline
    assert 0 <= share <= 100 + 1e-6
    cpu = worker.read(1.0)["worker_cpu_percent"]
    assert cpu is not None
    assert cpu >= 0


def test_process_that_is_gone_is_absent() -> None:
    with psutil.Popen(["true"]) as child:
        child.wait()
    with pytest.raises(SourceAbsent, match=f"no process {child.pid}"):
        PortableWorker(child.pid).open(Path("/"))
