"""Events and telemetry with defaults: a test names only what it is about."""

from __future__ import annotations

from typing import Any

from swarm.config import Layer, Settings, resolve
from swarm.protocol import AgentStarted, Telemetry, TelemetryArrived, WorkerJoined, WorkerLeft

GB = 10**9
WORKER = "tcp://10.0.0.1:4000"


def telemetry(*, taken_at_s: float = 1000.0, memory_percent: float | None = None, **readings: Any) -> Telemetry:
    """A sample with these readings and no others; `memory_percent` is of a limit of 1 GB."""
    if memory_percent is not None:
        readings |= {"worker_memory_bytes": round(memory_percent * GB / 100), "worker_memory_limit_bytes": GB}
    return Telemetry(taken_at_s=taken_at_s, **readings)


def arrived(worker: str = WORKER, at_s: float = 1000.0, **readings: Any) -> TelemetryArrived:
    """Telemetry of a worker, with the readings of `telemetry`."""
    return TelemetryArrived(at_s=at_s, worker=worker, telemetry=telemetry(taken_at_s=at_s, **readings))


def worker_joined(worker: str = WORKER, *, at_s: float = 999.0, **changes: Any) -> WorkerJoined:
    host = worker.removeprefix("tcp://").partition(":")[0]
    defaults = {"name": worker, "host": host, "threads": 2, "memory_limit_bytes": GB, "has_agents": True}
    return WorkerJoined(at_s=at_s, worker=worker, **{**defaults, **changes})


def worker_left(worker: str = WORKER, *, at_s: float = 2000.0, reason: str = "") -> WorkerLeft:
    return WorkerLeft(at_s=at_s, worker=worker, reason=reason)


def agent_started(worker: str = WORKER, *, at_s: float = 999.0, **changes: Any) -> AgentStarted:
    defaults = {"agents": ("resource",), "version": "0.1.0"}
    return AgentStarted(at_s=at_s, worker=worker, **{**defaults, **changes})


def settings(**values: Any) -> Settings:
    """Settings as a user writes them: `settings(performance_thresholds={"cpu_critical": 80})`."""
    return resolve([Layer("test", values)]).settings
