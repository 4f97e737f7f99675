"""The host as procfs shows it: CPU, load, memory, disks, network. Formats: proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.slope import Slope
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent


class HostCpu(Source):
    """Busy share and number of CPUs."""

    name = "host cpu"

    def open(self, root: Path, /) -> None:
        self._stat = self._keep(root / "proc/stat")
        # Counted once: the kernel writes thousands of interrupt counters behind the CPUs of a large host.
        self._cpus = parse.cpu_count(self._stat.read_all())
        self._share = Slope(scale=100)

    def read(self, _: float, /) -> Readings:
        busy, total = parse.cpu_ticks(self._stat.read())
        return {"host_cpu_percent": self._share.since_last(busy, total), "host_cpu_count": self._cpus}


class HostLoad(Source):
    name = "host load"

    def open(self, root: Path, /) -> None:
        self._loadavg = self._keep(root / "proc/loadavg")

    def read(self, _: float, /) -> Readings:
        return {"host_load_1min": parse.load_1min(self._loadavg.read())}


class HostMemory(Source):
    name = "host memory"

    def open(self, root: Path, /) -> None:
        self._meminfo = self._keep(root / "proc/meminfo")

    def read(self, _: float, /) -> Readings:
        total, available = parse.memory(self._meminfo.read())
        return {"host_memory_total_bytes": total, "host_memory_available_bytes": available}


class Disks(Source):
    """Traffic of the disks behind a controller; partitions, RAID and mapped devices would count bytes twice."""

    name = "disk"

    def open(self, root: Path, /) -> None:
        self._block = root / "sys/block"
        self._known: dict[str, bool] = {}
        self._read, self._written = Slope(), Slope()
        self._diskstats = self._keep(root / "proc/diskstats")
        names = parse.disk_bytes(self._diskstats.read_all())
        if not any(map(self._counts, names)):
            raise SourceAbsent(f"no disk of {root / 'proc/diskstats'} is a device of its own in {self._block}")

    def read(self, now_s: float, /) -> Readings:
        disks = parse.disk_bytes(self._diskstats.read_all())
        read, written = _sums(counts for disk, counts in disks.items() if self._counts(disk))
        return {
            "host_disk_read_bytes_per_s": self._read.since_last(read, now_s),
            "host_disk_write_bytes_per_s": self._written.since_last(written, now_s),
        }

    def _counts(self, disk: str) -> bool:
        known = self._known.get(disk)
        if known is None:
            # Only a disk with a parent has the link `device`; the paths of a multipath disk are marked as hidden.
            entry = self._block / disk
            known = self._known[disk] = (entry / "device").exists() and not _is_set(entry / "hidden")
        return known


class Network(Source):
    """Traffic of the network cards; of all interfaces but `lo` where there is no card, as in a container."""

    name = "network"

    def open(self, root: Path, /) -> None:
        self._class = root / "sys/class/net"
        self._known: dict[str, bool] = {}
        self._received, self._sent = Slope(), Slope()
        self._dev = self._keep(root / "proc/net/dev")
        names = parse.network_bytes(self._dev.read_all())
        self._has_cards = any(map(self._is_card, names))
        if not any(map(self._counts, names)):
            raise SourceAbsent(f"no interface but lo in {self._dev.path}")

    def read(self, now_s: float, /) -> Readings:
        interfaces = parse.network_bytes(self._dev.read_all())
        received, sent = _sums(counts for name, counts in interfaces.items() if self._counts(name))
        return {
            "host_network_received_bytes_per_s": self._received.since_last(received, now_s),
            "host_network_sent_bytes_per_s": self._sent.since_last(sent, now_s),
        }

    def _counts(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._is_card(name) if self._has_cards else name != "lo"
        return known

    def _is_card(self, name: str) -> bool:
        # Bridges, bonds, VLANs and tunnels repeat the bytes of a card, and so does a card whose master is a card
        # (the virtual function below a Hyper-V interface).
        entry = self._class / name
        return (entry / "device").exists() and not (entry / "master/device").exists()


class DiskSpace(Source):
    """Free bytes where the worker spills and keeps its local files."""

    name = "disk space"

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def open(self, _: Path, /) -> None:
        try:
            self.read(0.0)
        except OSError as error:
            raise SourceAbsent(f"can't look at {self._directory}: {(error.strerror or str(error)).lower()}") from error

    def read(self, _: float, /) -> Readings:
        space = os.statvfs(self._directory)
        return {"host_disk_free_bytes": space.f_bavail * space.f_frsize}


def _sums(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    first = second = 0
    for one, two in counts:
        first += one
        second += two
    return first, second


def _is_set(flag: Path) -> bool:
    return flag.exists() and flag.read_bytes().strip() == b"1"
