"""The worker process as procfs shows it. Formats: proc_pid_stat(5), proc_pid_io(5), proc_pid_fd(5)."""

from __future__ import annotations

import os
from pathlib import Path

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.slope import Slope
from swarm.telemetry.sources.source import Readings, Source

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessSource(Source):
    """A source about one process: `pid`, or this one."""

    def __init__(self, pid: int | None = None) -> None:
        super().__init__()
        self._directory = f"proc/{'self' if pid is None else pid}"
        self._is_other = pid not in {None, os.getpid()}


class WorkerStat(ProcessSource):
    """CPU time, threads and resident memory."""

    name = "worker"

    def open(self, root: Path, /) -> None:
        self._stat = self._keep(root / self._directory / "stat")
        self._cpu = Slope(scale=100 / TICKS_PER_S)

    def read(self, now_s: float, /) -> Readings:
        process = parse.process(self._stat.read())
        return {
            "worker_cpu_percent": self._cpu.since_last(process.cpu_ticks, now_s),
            "worker_threads": process.threads,
            "worker_memory_bytes": process.resident_pages * PAGE_BYTES,
        }


class WorkerIo(ProcessSource):
    """Bytes to and from storage."""

    name = "worker io"

    def open(self, root: Path, /) -> None:
        self._io = self._keep(
            root / self._directory / "io",
            "it takes a kernel with task I/O accounting, and for another process the same user",
        )
        self._read, self._written = Slope(), Slope()

    def read(self, now_s: float, /) -> Readings:
        read, written = parse.storage_bytes(self._io.read())
        return {
            "worker_read_bytes_per_s": self._read.since_last(read, now_s),
            "worker_write_bytes_per_s": self._written.since_last(written, now_s),
        }


class WorkerFiles(ProcessSource):
    """Open files."""

    name = "worker files"

    def open(self, root: Path, /) -> None:
        self._fd = root / self._directory / "fd"
        # Since Linux 6.2 the size of the directory is the count. Asked of the kernel, not of its version: below an
        # older one the size is 0, and a program that opens files meanwhile merely gets the slower way.
        self._size_is_count = self._fd.stat().st_size == self._listed()

    def read(self, _: float, /) -> Readings:
        return {"worker_open_files": self._fd.stat().st_size if self._size_is_count else self._listed()}

    def _listed(self) -> int:
        # Listing the own directory takes one more descriptor, which is not there any more when the count is.
        return len(os.listdir(self._fd)) - (0 if self._is_other else 1)  # noqa: PTH208 - 3 times faster than iterdir
