"""Reads what `anomaly.py` wants to know of a process, from procfs: proc_pid_stat(5), proc_pid_status(5)."""

from __future__ import annotations

import os
from pathlib import Path

from swarm.agents.kinds.anomaly import Facts
from swarm.agents.watch.black_box import BlackBoxReader

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MOST_WAITED = 4
"""Times what a thread ran that count of its waiting: on a full host one that just wakes up often waits long too."""


class ProcessFacts:
    """Looks at one process, some 0.2 ms each time.

    Parameters
    ----------
    box
        Its black box, if it has one.

    Raises
    ------
    FileNotFoundError
        There is no such process, or no procfs.
    """

    def __init__(self, pid: int, box: BlackBoxReader | None = None) -> None:
        self.pid = pid
        self._folder = Path("/proc", str(pid))
        self._box = box
        self._began = self._stat()[19]
        """In ticks since the boot: another process may get the same number."""
        self._threads: dict[str, tuple[int, int]] = {}
        """Thread → nanoseconds on a core, and in the queue for one."""
        self._wanted_ns = 0

    def look(self, now_s: float) -> Facts | None:
        """None: it has ended. `now_s` is `time.monotonic()`."""
        try:
            stat = self._stat()
            switches = self._switches()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if stat[19] != self._began or stat[0] in (b"Z", b"X"):
            return None
        try:
            files = len(os.listdir(self._folder / "fd"))  # noqa: PTH208 - 3 times faster than iterdir
        except OSError:  # another user's, or gone
            files = None
        return Facts(
            at_s=now_s,
            wanted_s=self._wanted_s(stat),
            resident_bytes=int(stat[21]) * PAGE_BYTES,
            major_faults=int(stat[9]),
            switches=switches,
            threads=int(stat[17]),
            files=files,
            tick_age_s=None if self._box is None else self._box.tick_age_s(now_s),
            running=None if self._box is None else len(self._box.running()),
        )

    def close(self) -> None:
        if self._box is not None:
            self._box.close()

    def _stat(self) -> list[bytes]:
        """From the state on, which is field 3: the name before it may contain anything."""
        return (self._folder / "stat").read_bytes().rpartition(b")")[2].split()

    def _wanted_s(self, stat: list[bytes]) -> float:
        """By thread, since those that end take their numbers with them (Documentation/scheduler/sched-stats.rst)."""
        threads: dict[str, tuple[int, int]] = {}
        for thread in os.listdir(self._folder / "task"):  # noqa: PTH208 - as below
            try:
                ran, waited, _ = (self._folder / "task" / thread / "schedstat").read_bytes().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            threads[thread] = int(ran), int(waited)
        if not threads:  # a kernel without them
            return (int(stat[11]) + int(stat[12])) / TICKS_PER_S
        for thread, now in threads.items():
            before = self._threads.get(thread, (0, 0))
            ran_ns, waited_ns = (max(after - since, 0) for after, since in zip(now, before, strict=True))
            self._wanted_ns += ran_ns + min(waited_ns, MOST_WAITED * ran_ns)
        self._threads = threads
        return self._wanted_ns / 1e9

    def _switches(self) -> int:
        text = (self._folder / "status").read_bytes()
        return sum(int(line.rpartition(b"\t")[2]) for line in text.splitlines() if b"ctxt_switches:" in line)
