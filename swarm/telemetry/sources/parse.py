"""The text of kernel files → numbers.  PURE

Each function reads the format that the kernel documents (proc(5), Documentation/ABI, Documentation/admin-guide) and
raises `ParseError` for anything else: no other exception, whatever the bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

COUNTER_LIMIT = 2**64
"""The kernel's counters are 64 bits wide."""
SIZE_LIMIT = 2**50
"""No file speaks of this many bytes, kB or pages in earnest; times a page it still fits a msgpack integer."""
UNLIMITED_V1_BYTES = 2**62
"""cgroup v1 writes "no limit" as the largest multiple of a page below 2**63."""
TEMPERATURE_CELSIUS = (-40.0, 150.0)
"""Outside of it a sensor is not connected: drivers report -273, 0xff or sign errors then."""

MEMORY = re.compile(rb"MemTotal:\s+(\d+) kB\nMemFree:\s+\d+ kB\nMemAvailable:\s+(\d+) kB\n")


class ParseError(ValueError):
    """A kernel file that is not in its documented form."""


def _reads(file: str) -> Callable[[Callable[Concatenate[bytes, P], T]], Callable[Concatenate[bytes, P], T]]:
    """Turn every way in which a parser can stumble into a `ParseError` that names the file."""

    def wrap(parse: Callable[Concatenate[bytes, P], T]) -> Callable[Concatenate[bytes, P], T]:
        @functools.wraps(parse)
        def checked(text: bytes, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return parse(text, *args, **kwargs)
            except (LookupError, ValueError, ZeroDivisionError) as error:
                start = text[:40].decode("ascii", "backslashreplace")
                raise ParseError(f"{file} is not in its documented form: {start!r}") from error

        return checked

    return wrap


def _count(token: bytes, limit: int = COUNTER_LIMIT) -> int:
    if not token.isdigit() or len(token) > 20 or (number := int(token)) >= limit:
        raise ValueError(token)
    return number


def _size(token: bytes) -> int:
    return _count(token, SIZE_LIMIT)


def _within(token: bytes, low: float, high: float) -> float:
    number = float(token)
    if not low <= number <= high:  # also refuses nan
        raise ValueError(token)
    return number


def _pairs(text: bytes) -> dict[bytes, bytes]:
    """`key value` per line, as cpu.stat, memory.events and io have it; the colon of `key:` is dropped."""
    lines = (line.split() for line in text.splitlines())
    return {fields[0].rstrip(b":"): fields[1] for fields in lines if len(fields) >= 2}


# -- the host ---------------------------------------------------------------------------------------------------


@_reads("/proc/stat")
def cpu_ticks(text: bytes) -> tuple[int, int]:
    """(busy, all) ticks of all CPUs since boot. Waiting for I/O is idle, time stolen by the hypervisor is busy."""
    label, *fields = text[: text.index(b"\n")].split()
    if label != b"cpu":
        raise ValueError(label)
    # user nice system idle iowait irq softirq steal; guest time is part of user already
    ticks = [_count(field) for field in fields[:8]]
    total = sum(ticks)
    return total - ticks[3] - ticks[4], total


@_reads("/proc/stat")
def cpu_count(text: bytes) -> int:
    """CPUs that are online."""
    count = len(re.findall(rb"^cpu\d+ ", text, re.MULTILINE))
    if not count:
        raise ValueError(count)
    return count


@_reads("/proc/meminfo")
def memory(text: bytes) -> tuple[int, int]:
    """(total, available) bytes. `MemAvailable` is there since Linux 3.14."""
    found = MEMORY.match(text)  # fifty more lines follow
    if found is None:
        raise ValueError(text)
    return _size(found[1]) * 1024, _size(found[2]) * 1024


@_reads("/proc/loadavg")
def load_1min(text: bytes) -> float:
    """Tasks that run or wait to run, mean of the last minute."""
    return _within(text.split()[0], 0, 1e6)


@_reads("/proc/diskstats")
def disk_bytes(text: bytes) -> dict[str, tuple[int, int]]:
    """Block device → (read, written) bytes since boot; sectors are 512 bytes here on every disk."""
    disks = {}
    for line in text.splitlines():
        fields = line.split()
        disks[fields[2].decode("ascii")] = (_count(fields[5]) * 512, _count(fields[9]) * 512)
    return disks


@_reads("/proc/net/dev")
def network_bytes(text: bytes) -> dict[str, tuple[int, int]]:
    """Network interface → (received, sent) bytes since it came up."""
    interfaces = {}
    for line in text.splitlines()[2:]:
        name, _, counters = line.rpartition(b":")
        fields = counters.split()
        interfaces[name.strip().decode("ascii")] = (_count(fields[0]), _count(fields[8]))
    return interfaces


@_reads("/proc/pressure")
def pressure_percent(text: bytes) -> float:
    """`some avg10`: share of the last 10 s in which some task waited."""
    some, average = text.split(maxsplit=2)[:2]
    label, _, value = average.partition(b"=")
    if (some, label) != (b"some", b"avg10"):
        raise ValueError(text)
    return _within(value, 0, 100)


@_reads("a temperature sensor")
def temperature_celsius(text: bytes) -> float | None:
    """Degrees of a sensor that reads in thousandths; None when no sensor is connected to the chip's pin."""
    degrees = int(text) / 1000 if len(text) < 20 else float("nan")
    low, high = TEMPERATURE_CELSIUS
    return degrees if low < degrees < high else None


@_reads("an energy or power counter")
def energy_uj(text: bytes) -> int:
    """Microjoules of RAPL, or microwatts of a power meter."""
    return _count(text.strip())


# -- one process ------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """What /proc/<pid>/stat says."""

    cpu_ticks: int
    threads: int
    resident_pages: int


@_reads("/proc/self/stat")
def process(text: bytes) -> Process:
    """CPU ticks (user and system), threads and resident pages.

    Resident pages are the same number as in statm, one read fewer.
    """
    fields = text[text.rindex(b")") + 1 :].split()  # the name of a program may hold anything but a NUL
    return Process(_count(fields[11]) + _count(fields[12]), _size(fields[17]), _size(fields[21]))


@_reads("/proc/self/io")
def storage_bytes(text: bytes) -> tuple[int, int]:
    """(read, written) bytes that went to storage, not those that the page cache answered."""
    pairs = _pairs(text)
    return _count(pairs[b"read_bytes"]), _count(pairs[b"write_bytes"])


# -- control groups ---------------------------------------------------------------------------------------------


@_reads("cpu.max")
def cpu_limit_v2(text: bytes) -> float | None:
    """Cores that the group may use; None without a limit."""
    quota, period = text.split()
    return None if quota == b"max" else _size(quota) / _size(period)


@_reads("cpu.cfs_quota_us")
def cpu_limit_v1(quota: bytes, period: bytes) -> float | None:
    """Cores that the group may use, from quota and period; None without a limit."""
    return None if quota.strip() == b"-1" else _size(quota.strip()) / _size(period.strip())


@_reads("cpu.stat")
def throttled_periods(text: bytes) -> tuple[int, int]:
    """(periods in which the limit stopped the group, periods in which it ran), both versions."""
    pairs = _pairs(text)
    return _count(pairs[b"nr_throttled"]), _count(pairs[b"nr_periods"])


@_reads("the memory limit")
def memory_limit_bytes(text: bytes) -> int | None:
    """`memory.max` or `memory.limit_in_bytes`; None without a limit."""
    limit = text.strip()
    if limit == b"max" or _count(limit) >= UNLIMITED_V1_BYTES:
        return None
    return _count(limit)


@_reads("the memory use")
def memory_bytes(text: bytes) -> int:
    """`memory.current` or `memory.usage_in_bytes`."""
    return _size(text.strip())


@_reads("the OOM counter")
def oom_kills(text: bytes) -> int:
    """Processes that the kernel killed in the group: `memory.events`, or `memory.oom_control` since Linux 4.13."""
    return _size(_pairs(text)[b"oom_kill"])


class Group(NamedTuple):
    """Where the control group of a process is mounted."""

    version: int
    mount: str
    below: str
    """Path of the group below the mount point, "" when the mount shows the group itself."""


@_reads("/proc/self/cgroup")
def groups(cgroup: bytes, mountinfo: bytes) -> dict[str, Group]:
    """Controller → its group; "" is the unified (v2) hierarchy. Source: cgroups(7), /proc/pid/cgroup and mountinfo.

    A hybrid host has some controllers in v1 and the rest in v2, so it is settled per controller. In a container the
    mount may show only the group itself: then its path begins with the root of the mount, or leads out of sight.
    """
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.decode().split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, Group] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        root, mount = (_unescaped(field) for field in before.split()[3:5])
        kind, _, options = after.decode().split(" ", 2)
        names = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
        for name in names:
            if name in paths:
                found.setdefault(name, Group(1 if name else 2, mount, _below(paths[name], root)))
    return found


def _below(path: str, root: str) -> str:
    if path.startswith("/..") or path == root:
        return ""
    inside = path.removeprefix(root.rstrip("/"))
    return inside.strip("/") if inside.startswith("/") else ""


def _unescaped(field: bytes) -> str:
    """Mountinfo writes blanks and the like as octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8) & 255]), field).decode()
