"""Limits and use of the control group in which the worker runs, versions 1 and 2.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. A limit on any group above binds as well, and use
and throttling are counted where the limit is. So each source watches one level: the one with the tightest limit, or
the worker's own group when there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from swarm.telemetry.sources import parse
from swarm.telemetry.sources.slope import Slope
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent

ENTER_ONE = "run the worker in a container or below `systemd-run --scope -p MemoryMax=… -p CPUQuota=…` to have one"


def levels(root: Path, pid: int | None, controller: str) -> tuple[int, list[Path]]:
    """(version, directories) of the group of a process, its own first, then all that are visible above it.

    `controller` is "cpu" or "memory", or "" for what only version 2 has. Raises `SourceAbsent`.
    """
    process = root / "proc" / ("self" if pid is None else str(pid))
    try:
        found = parse.groups((process / "cgroup").read_bytes(), (root / "proc/self/mountinfo").read_bytes())
    except OSError as error:
        raise SourceAbsent(f"the kernel has no control groups: {error.filename} is missing") from error
    group = found.get(controller) or found.get("")
    if group is None:
        wanted = f"the {controller} controller" if controller else "version 2"
        raise SourceAbsent(f"control groups with {wanted} are not mounted; mount cgroup2 on /sys/fs/cgroup")
    mount = root / group.mount.lstrip("/")
    own = mount / group.below
    return group.version, [own, *own.parents[: len(own.parts) - len(mount.parts)]]


def tightest(paths: list[Path], limit: Callable[[Path], float | None]) -> Path:
    """The level with the lowest limit, the innermost of equals. Raises `SourceAbsent` when none has the files."""
    found: list[tuple[float, Path]] = []
    for path in paths:
        try:
            bound = limit(path)
        except FileNotFoundError:  # the root group has no limits, nor has one in which the controller is off
            continue
        found.append((math.inf if bound is None else bound, path))
    if not found:
        raise SourceAbsent(f"no limits and no counters at {paths[0]}, the root of the control groups; {ENTER_ONE}")
    return min(found, key=lambda pair: pair[0])[1]


def cpu_limit(root: Path) -> tuple[float | None, Path]:
    """Cores that the control group of this process may use, None: all, and the group that says so.

    Raises `SourceAbsent`.
    """
    version, paths = levels(root, None, "cpu")
    limit = _cpu_limit_v2 if version == 2 else _cpu_limit_v1
    group = tightest(paths, limit)
    return limit(group), group


def memory_limit_bytes(root: Path) -> int | None:
    """Memory that the control group of this process may use; None: all. Raises `SourceAbsent`."""
    version, paths = levels(root, None, "memory")
    file = MEMORY_FILES[version][0]
    group = tightest(paths, lambda path: parse.memory_limit_bytes((path / file).read_bytes()))
    return parse.memory_limit_bytes((group / file).read_bytes())


class CgroupSource(Source):
    def __init__(self, pid: int | None = None) -> None:
        super().__init__()
        self._pid = pid


class CgroupCpu(CgroupSource):
    """The limit in cores, and how often it stopped the group."""

    name = "cgroup cpu"

    def open(self, root: Path, /) -> None:
        version, paths = levels(root, self._pid, "cpu")
        limit = _cpu_limit_v2 if version == 2 else _cpu_limit_v1
        group = tightest(paths, limit)
        self._limit = [self._keep(group / name) for name in CPU_LIMIT_FILES[version]]
        self._stat = self._keep(group / "cpu.stat")
        self._throttled = Slope(scale=100)

    def read(self, _: float, /) -> Readings:
        texts = [file.read() for file in self._limit]
        limit = parse.cpu_limit_v2(texts[0]) if len(texts) == 1 else parse.cpu_limit_v1(texts[0], texts[1])
        # Periods, not time: the kernel adds up the time of each CPU, which is no share of the interval.
        stopped, periods = parse.throttled_periods(self._stat.read())
        return {
            "cgroup_cpu_limit_cores": limit,
            "cgroup_cpu_throttled_percent": self._throttled.since_last(stopped, periods),
        }


class CgroupMemory(CgroupSource):
    """Use (page cache included), limit, and processes that the kernel killed for want of memory."""

    name = "cgroup memory"

    def open(self, root: Path, /) -> None:
        version, paths = levels(root, self._pid, "memory")
        limit, use, kills = MEMORY_FILES[version]
        group = tightest(paths, lambda path: parse.memory_limit_bytes((path / limit).read_bytes()))
        self._limit, self._use, self._kills = (self._keep(group / name) for name in (limit, use, kills))

    def read(self, _: float, /) -> Readings:
        return {
            "cgroup_memory_limit_bytes": parse.memory_limit_bytes(self._limit.read()),
            "cgroup_memory_bytes": parse.memory_bytes(self._use.read()),
            "cgroup_oom_kills": parse.oom_kills(self._kills.read()),
        }


CPU_LIMIT_FILES = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
    2: ("memory.max", "memory.current", "memory.events"),
}


def _cpu_limit_v1(group: Path) -> float | None:
    quota, period = (group / name for name in CPU_LIMIT_FILES[1])
    return parse.cpu_limit_v1(quota.read_bytes(), period.read_bytes())


def _cpu_limit_v2(group: Path) -> float | None:
    return parse.cpu_limit_v2((group / CPU_LIMIT_FILES[2][0]).read_bytes())
