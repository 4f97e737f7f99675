"""What the CPU counts for one thread: cycles, instructions, cache and branch misses.

Source: perf_event_open(2), through ctypes. All counters of a thread are one group, so that they cover the same time. A
CPU counts few things at once, and what doesn't fit reads 0 or only for a part of the time, without any error: so the
group is tried on a little work first, and what doesn't count is left out and said.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

MOST = 5
"""Counters at once: on the machines at hand a sixth read 0 without a word."""
HARDWARE: Mapping[str, tuple[int, int]] = {
    "cycles": (0, 0),
    "instructions": (0, 1),
    "cache_misses": (0, 3),
    "branch_misses": (0, 5),
    "cache_references": (0, 2),
}
"""Name → type and configuration (`PERF_TYPE_HARDWARE` of linux/perf_event.h), the least dispensable first."""
SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
"""Number of perf_event_open (asm/unistd_64.h, asm-generic/unistd.h)."""
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_CLOEXEC = 8
_GROUP_WITH_TIMES = 1 | 2 | 8
"""`PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING | PERF_FORMAT_GROUP`"""
_USER_ONLY = 1 << 5 | 1 << 6
"""`exclude_kernel | exclude_hv`: all that an ordinary user may see, and what a task itself does."""
_ATTRIBUTE = struct.Struct("=IIQQQQQ88x")
_TIMES = struct.Struct("=QQQ")


class Kernel(Protocol):
    """The two calls that this module makes."""

    def open(self, kind: int, config: int, leader: int) -> int: ...

    def read(self, fd: int, nbytes: int) -> bytes: ...


class Linux:
    """perf_event_open and read.

    Raises
    ------
    OSError
        There is no such call here.
    """

    def __init__(self) -> None:
        number = SYSCALL.get(platform.machine()) if sys.platform == "linux" else None
        if number is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        self._number = number
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open(self, kind: int, config: int, leader: int) -> int:
        """For the calling thread, on whatever CPU."""
        attribute = _ATTRIBUTE.pack(kind, _ATTRIBUTE.size, config, 0, 0, _GROUP_WITH_TIMES, _USER_ONLY)
        long = ctypes.c_long
        fd = self._libc.syscall(long(self._number), attribute, long(0), long(-1), long(leader), long(_CLOEXEC))
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(fd)

    def read(self, fd: int, nbytes: int) -> bytes:
        return os.read(fd, nbytes)


class Reading(NamedTuple):
    """Of one thread, since its group was opened."""

    enabled_ns: int
    running_ns: int
    """Less than enabled: the counters took turns with others."""
    values: tuple[int, ...]


class Group:
    """The counters of one thread; opened in that thread, read and closed in any."""

    def __init__(self, kernel: Kernel, events: Mapping[str, tuple[int, int]]) -> None:
        self._kernel = kernel
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self._format = struct.Struct(f"={len(events)}Q")
        try:
            for kind, config in events.values():
                self._fds.append(kernel.open(kind, config, self._fds[0] if self._fds else -1))
        except OSError:
            self.close()
            raise

    def read(self) -> Reading | None:
        """All at once; None after `close`."""
        with self._lock:  # not to read from a number that `close` has given back
            if not self._fds:
                return None
            data = self._kernel.read(self._fds[0], _TIMES.size + self._format.size)
        if len(data) < _TIMES.size + self._format.size:  # a pinned group in error reads as the end of a file
            return None
        _, enabled_ns, running_ns = _TIMES.unpack_from(data)
        return Reading(enabled_ns, running_ns, self._format.unpack_from(data, _TIMES.size))

    def close(self) -> None:
        """More than once does no harm."""
        with self._lock:
            while self._fds:
                with contextlib.suppress(OSError):  # given back all the same
                    os.close(self._fds.pop())

    def __del__(self) -> None:
        self.close()


@dataclass
class Counters:
    """The counters that this machine has, for each thread that asks.

    Examples
    --------
    >>> with contextlib.closing(Counters.of_this_machine()) as counters:
    ...     begin = counters.read()
    ...     work = sum(range(1000))
    ...     counted = counters.between(begin, counters.read())
    ...     counted.get("instructions", 1) > 0 or counters.absent
    True
    """

    events: Mapping[str, tuple[int, int]]
    """What counts; empty where nothing does."""
    absent: dict[str, str] = field(default_factory=dict)
    """Counter → why it isn't there."""
    is_scaled: bool = False
    """Counters took turns when they were tried: values are scaled from a part of the time."""
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        self._local = threading.local()
        self._groups: weakref.WeakSet[Group] = weakref.WeakSet()
        self._is_open = bool(self.events)

    @classmethod
    def of_this_machine(
        cls, kernel: Kernel | None = None, wanted: Mapping[str, tuple[int, int]] = HARDWARE
    ) -> Counters:
        """Try what there is, with about 5 ms of work."""
        try:
            kernel = kernel or Linux()
        except OSError as error:
            return cls({}, dict.fromkeys(wanted, why(error)))
        absent: dict[str, str] = {}
        events: dict[str, tuple[int, int]] = {}
        for name, event in wanted.items():
            try:
                Group(kernel, {name: event}).close()
            except OSError as error:
                absent[name] = why(error)
                continue
            if len(events) == MOST:
                absent[name] = f"the CPU counts no more than {MOST} things at once"
            else:
                events[name] = event
        is_scaled = False
        while events:
            try:
                silent, is_scaled = _tried(kernel, events)
            except OSError as error:  # the kernel counts the places of a group when it is put together
                silent, reason = [list(events)[-1]], f"does not fit beside the others: {why(error)}"
            else:
                reason = "reads 0 beside the others"
            if not silent:
                break
            # One at a time, from the end: without the last, those before it may count.
            events.pop(silent[-1])
            absent[silent[-1]] = reason
        return cls(events, absent, is_scaled, kernel)

    def read(self) -> Reading | None:
        """Those of the calling thread, counted from its first call on; None where nothing counts."""
        group: Group | None = getattr(self._local, "group", None)
        if group is None:
            if not self._is_open or self.kernel is None:
                return None
            try:
                group = Group(self.kernel, self.events)
            except OSError as error:  # too many open files, say: from now on nothing, and it can be seen why
                self._is_open = False
                self.absent.update(dict.fromkeys(self.events, why(error)))
                return None
            self._local.group = group
            self._groups.add(group)
        return group.read()

    def between(self, begin: Reading | None, end: Reading | None) -> dict[str, float]:
        """What was counted, scaled to the whole time; empty if it did not count at all."""
        if begin is None or end is None or end.running_ns <= begin.running_ns:
            return {}
        scale = (end.enabled_ns - begin.enabled_ns) / (end.running_ns - begin.running_ns)
        pairs = zip(self.events, begin.values, end.values, strict=True)
        return {name: (after - before) * scale for name, before, after in pairs}

    def close(self) -> None:
        """Give back the files of all threads."""
        self._is_open = False
        for group in list(self._groups):
            group.close()


def _tried(kernel: Kernel, events: Mapping[str, tuple[int, int]]) -> tuple[list[str], bool]:
    """Counters that saw nothing of some work, and whether they took turns."""
    group = Group(kernel, events)
    try:
        before = group.read()
        _work()
        after = group.read()
    finally:
        group.close()
    if before is None or after is None or after.running_ns == before.running_ns:
        return list(events), False
    silent = [name for name, a, b in zip(events, before.values, after.values, strict=True) if a == b]
    return silent, after.running_ns - before.running_ns < after.enabled_ns - before.enabled_ns


def _work() -> None:
    """Some ms that miss the cache, and branches nobody can foresee."""
    block, until_s, seed = bytearray(1 << 22), time.perf_counter() + 0.004, 1
    while time.perf_counter() < until_s:
        for _ in range(500):
            seed = seed * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            if seed >> 63:
                block[seed >> 42] += block[seed >> 43 & 0x1FFFFF] == 0
        block[:] = bytes(len(block))


def why(error: OSError) -> str:
    """The reason for a refusal, and what to do about it where one can."""
    if error.errno in (errno.EACCES, errno.EPERM):
        try:
            level = int(PARANOID.read_text())
        except (OSError, ValueError):
            level = 0
        if level > 2:
            return f"kernel.perf_event_paranoid is {level}; it takes 2 or less, or CAP_PERFMON"
        return "perf_event_open is forbidden here (a container?); it takes CAP_PERFMON, or a seccomp profile with it"
    if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV, errno.ENXIO):
        return "the CPU does not count it; a virtual machine must be given the counters (a virtual PMU)"
    if error.errno == errno.ENOSYS:
        return f"perf_event_open is not known on {sys.platform}, {platform.machine()}"
    return f"perf_event_open: {error.strerror or error}"
