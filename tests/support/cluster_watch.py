"""Looks at a cluster under load: how regularly telemetry arrives, how memory grows, what the agents use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
from distributed.core import Status


@dataclass
class Arrivals:
    """When the telemetry of one worker was seen to arrive."""

    heard_at_s: float
    count: int = 1
    largest_gap_s: float = 0.0


class TelemetryWatch:
    """Follows the age of each worker's telemetry in `Swarm.status()`; look more often than it arrives."""

    def __init__(self) -> None:
        self.arrivals: dict[str, Arrivals] = {}
        """By worker name."""

    def look(self, status: Mapping[str, Any]) -> None:
        now_s = status["totals"]["now_s"]
        for row in status["workers"]:
            if row["telemetry_age_s"] is None:
                continue
            heard_at_s = now_s - row["telemetry_age_s"]
            known = self.arrivals.setdefault(row["name"], Arrivals(heard_at_s))
            if heard_at_s - known.heard_at_s > 1e-3:
                known.count += 1
                known.largest_gap_s = max(known.largest_gap_s, heard_at_s - known.heard_at_s)
                known.heard_at_s = heard_at_s
            known.largest_gap_s = max(known.largest_gap_s, now_s - known.heard_at_s)  # still silent

    @property
    def largest_gap_s(self) -> float:
        return max((worker.largest_gap_s for worker in self.arrivals.values()), default=0.0)


@dataclass
class MemoryWatch:
    """Resident memory of processes over time."""

    pids: Mapping[str, int]
    """By role, as `LocalProcesses.processes`."""
    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Role → (time, bytes)."""

    def look(self) -> None:
        for role, pid in self.pids.items():
            rss_bytes = psutil.Process(pid).memory_info().rss
            self.seen.setdefault(role, []).append((time.monotonic(), rss_bytes))

    def last_bytes(self, role: str) -> int:
        return self.seen[role][-1][1]

    def growth_bytes_per_min(self, role: str, warm_up_s: float) -> float | None:
        """Slope of the line of least squares after the warm-up; None when less than a minute is left."""
        times_s, sizes = zip(*self.seen[role], strict=True)
        warm = next((i for i, t in enumerate(times_s) if t - times_s[0] >= warm_up_s), len(times_s))
        if len(times_s) - warm < 3 or times_s[-1] - times_s[warm] < 60.0:
            return None
        return 60.0 * statistics.linear_regression(times_s[warm:], sizes[warm:]).slope


def clock_agents(dask_worker: Any) -> list[str]:
    """Run on a worker: from now on count the CPU time of its agents; returns their names.

    They run on the event loop of the worker, so the CPU time of its thread during a call is theirs.
    """
    host = dask_worker.extensions["swarm"]
    host.used_cpu_s = 0.0

    def clocked(call: Any) -> Any:
        def timed() -> Any:
            began_s = time.thread_time()
            try:
                return call()
            finally:
                host.used_cpu_s += time.thread_time() - began_s

        return timed

    for agent in host.agents:
        agent._callback.callback = clocked(agent._callback.callback)
    host.heartbeat = clocked(host.heartbeat)
    assert dask_worker.status is Status.running
    return [agent.name for agent in host.agents]


def read_clock(dask_worker: Any) -> float:
    """Run on a worker: CPU seconds of its agents since `clock_agents`."""
    return float(dask_worker.extensions["swarm"].used_cpu_s)
