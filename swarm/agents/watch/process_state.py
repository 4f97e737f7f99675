"""What the kernel says of a process on this host, for those who ask about one that does not answer itself."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

LOOK_AGAIN_S = 0.15
"""Between the two looks of one report: a profiler stops a process for milliseconds, and that means nothing."""
KINDS = {
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "stopped",
    psutil.STATUS_ZOMBIE: "gone",
    psutil.STATUS_DEAD: "gone",
    psutil.STATUS_DISK_SLEEP: "blocked",
}
"""Of the states; all others are "runs" (`scheduler_plugins.decide.faults.Process`)."""


def look(process: psutil.Process) -> tuple[str, float]:
    """What the kernel says of it, and its CPU seconds."""
    try:
        status, times = process.status(), process.cpu_times()
    except psutil.NoSuchProcess:
        return "gone", 0.0
    return KINDS.get(status, "runs"), times.user + times.system


async def look_twice(process: psutil.Process) -> tuple[str, float]:
    """Its state, when it is the same at two looks, else "runs"; and the CPU seconds that it took between them."""
    first, cpu_before_s = look(process)
    if first == "gone":
        return first, 0.0
    await asyncio.sleep(LOOK_AGAIN_S)
    again, cpu_s = look(process)
    state = again if again in (first, "gone") else "runs"
    return state, max(cpu_s - cpu_before_s, 0.0)


def identity() -> list[int | float | str]:
    """Of this process among all of all hosts: its number, when it started, and where numbers mean the same.

    Processes may look at each other when the last part is equal: the boot of the kernel, and the namespace of process
    numbers (a container has its own).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # another system than Linux: nobody else can look
        boot, space = "unknown", str(os.getpid())
    return [os.getpid(), psutil.Process().create_time(), f"{boot} {space}"]


async def neighbour(pid: int, created_s: float) -> dict[str, object]:
    """Look at another worker of this host that has no nanny; the handler `swarm_neighbour` of a worker."""
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - created_s) < 1.0  # the number may mean another process by now
    except psutil.NoSuchProcess:
        is_it = False
    if not is_it:
        return {"process": "gone"}
    state, cpu_s = await look_twice(process)
    return {"process": state, "cpu_s": cpu_s}
