"""Host and process through psutil, where there is no procfs: macOS, BSD."""

from __future__ import annotations

from pathlib import Path

import psutil

from swarm.telemetry.sources.slope import Slope
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent


class PortableHost(Source):
    name = "host"

    def open(self, _: Path, /) -> None:
        self._share = Slope(scale=100)
        self._rates = {
            field: Slope()
            for field in (
                "host_disk_read_bytes_per_s",
                "host_disk_write_bytes_per_s",
                "host_network_received_bytes_per_s",
                "host_network_sent_bytes_per_s",
            )
        }

    def read(self, now_s: float, /) -> Readings:
        ticks = psutil.cpu_times()
        memory = psutil.virtual_memory()
        counters: dict[str, int] = {}
        if disks := psutil.disk_io_counters():
            counters["host_disk_read_bytes_per_s"] = disks.read_bytes
            counters["host_disk_write_bytes_per_s"] = disks.write_bytes
        cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if not name.startswith("lo")]
        if cards:
            counters["host_network_received_bytes_per_s"] = sum(card.bytes_recv for card in cards)
            counters["host_network_sent_bytes_per_s"] = sum(card.bytes_sent for card in cards)
        total = sum(ticks) - getattr(ticks, "guest", 0.0) - getattr(ticks, "guest_nice", 0.0)
        idle = ticks.idle + getattr(ticks, "iowait", 0.0)
        return {
            "host_cpu_percent": self._share.since_last(total - idle, total),
            "host_cpu_count": psutil.cpu_count(),
            "host_load_1min": psutil.getloadavg()[0],
            "host_memory_total_bytes": memory.total,
            "host_memory_available_bytes": memory.available,
            **{field: self._rates[field].since_last(count, now_s) for field, count in counters.items()},
        }


class PortableWorker(Source):
    name = "worker"

    def __init__(self, pid: int | None = None) -> None:
        super().__init__()
        self._pid = pid

    def open(self, _: Path, /) -> None:
        try:
            self._process = psutil.Process(self._pid)
        except psutil.NoSuchProcess as error:
            raise SourceAbsent(f"there is no process {self._pid}") from error
        self._cpu = Slope(scale=100)

    def read(self, now_s: float, /) -> Readings:
        with self._process.oneshot():
            times = self._process.cpu_times()
            return {
                "worker_cpu_percent": self._cpu.since_last(times.user + times.system, now_s),
                "worker_memory_bytes": self._process.memory_info().rss,
                "worker_threads": self._process.num_threads(),
                "worker_open_files": self._process.num_fds(),
            }
