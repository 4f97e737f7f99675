"""Events of a cluster that exists only in a test: what the scheduler plugin would publish, in its order."""

from __future__ import annotations

import math
from collections.abc import Iterator

from swarm.protocol import (
    AgentRefused,
    AgentStarted,
    AlertCleared,
    AlertRaised,
    ClusterSampled,
    Event,
    RunEnded,
    RunProgressed,
    RunSubmitted,
    Telemetry,
    TelemetryArrived,
    WorkerJoined,
)

GIB = 1 << 30


def address(i: int) -> str:
    return f"tcp://10.0.{i // 200}.{10 + i % 200}:40{i % 100:02}"


def joined(i: int, at_s: float, *, name: str | None = None, has_agents: bool = True) -> WorkerJoined:
    return WorkerJoined(
        at_s=at_s,
        worker=address(i),
        name=name or f"node-{i:02}",
        host=f"10.0.{i // 200}.{10 + i % 200}",
        threads=4,
        memory_limit_bytes=8 * GIB,
        has_agents=has_agents,
    )


def telemetry(i: int, at_s: float, *, cpu_percent: float = 200.0, memory_bytes: int = 2 * GIB) -> TelemetryArrived:
    reading = Telemetry(
        taken_at_s=at_s,
        interval_s=1.0,
        worker_cpu_percent=cpu_percent,
        worker_memory_bytes=memory_bytes,
        worker_memory_limit_bytes=8 * GIB,
        worker_threads=9,
    )
    return TelemetryArrived(at_s=at_s, worker=address(i), telemetry=reading)


def memory_alert(i: int, at_s: float, name: str | None = None) -> AlertRaised:
    return AlertRaised(
        at_s=at_s,
        alert=f"memory {address(i)}",
        worker=address(i),
        resource="memory",
        value=91.0,
        threshold=85.0,
        unit="%",
        rule="above limit",
        reason=f"{name or f'node-{i:02}'} holds 7.3 of 8.0 GiB, 91 %, for 12 s; the limit is 85 %.",
    )


def sampled(at_s: float, finished: int, *, workers: int = 8) -> ClusterSampled:
    return ClusterSampled(
        at_s=at_s,
        workers=workers,
        threads=4 * workers,
        tasks_finished=finished,
        tasks_erred=3,
        tasks_processing=4 * workers,
        tasks_queued=1180,
        tasks_waiting=96,
        scheduler_cpu_percent=31.0,
        loop_lag_s=0.002,
    )


def busy_second(workers: int, now_s: float) -> Iterator[Event]:
    """One second of telemetry of `busy_cluster`: worker 5 of each 50 has no agents, worker 6 fell silent."""
    for i in range(workers):
        if i % 50 == 5:
            continue
        memory_gib = 7.3 if i % 23 == 2 else 3.0 + 2.4 * math.sin(i * 1.3)
        yield telemetry(
            i,
            now_s - (40.0 if i % 50 == 6 else 0.0),
            cpu_percent=400.0 * (0.5 + 0.45 * math.sin(i * 2.1 + now_s % 600 / 9)),
            memory_bytes=int(memory_gib * GIB),
        )


def busy_cluster(workers: int, now_s: float) -> Iterator[Event]:
    """Four minutes of a busy day up to `now_s`: some alerts, workers of every health, runs of every status."""
    start_s = now_s - 240.0  # the last sample is a second old
    for i in range(workers):
        yield joined(i, start_s, has_agents=i % 50 != 5)
        if i % 50 != 5:
            yield AgentStarted(at_s=start_s, worker=address(i), agents=("resource",), version="0.1.0")
    if workers > 5:
        yield AgentRefused(at_s=start_s, worker=address(5), reason="It has swarm 0.0.9, the scheduler has 0.1.0.")
    finished = 0.0
    for second in range(240):
        finished += workers * (11 + 5 * math.sin(second / 17) + 2 * math.sin(second / 3.1)) * min(1.0, second / 20)
        yield sampled(start_s + second, int(finished), workers=workers)
    yield from busy_second(workers, now_s - 1)
    yield from busy_second(workers, now_s)
    for i in range(2, workers, 23):
        yield memory_alert(i, now_s - 12 - i)
    if workers > 1:
        cpu = AlertRaised(
            at_s=now_s - 95,
            alert=f"cpu {address(0)}",
            worker=address(0),
            resource="cpu",
            value=99.0,
            threshold=95.0,
            unit="%",
            rule="above limit",
            reason="node-00 uses 99 % of its 4 threads for 30 s; the limit is 95 %.",
        )
        yield cpu
        yield AlertCleared(
            at_s=now_s - 50,
            alert=cpu.alert,
            worker=cpu.worker,
            resource="cpu",
            value=80.0,
            reason="node-00 uses 80 % of its 4 threads again.",
            lasted_s=45.0,
        )
    yield RunSubmitted(at_s=start_s, run="r1", name="heat", tasks=480, client="Client-1")
    yield RunProgressed(at_s=start_s + 60, run="r1", tasks=480, finished=480, erred=0, processing=0)
    yield RunEnded(at_s=start_s + 61, run="r1", status="finished", elapsed_s=61.2)
    yield RunSubmitted(at_s=start_s + 62, run="r2", name="options", tasks=900, client="Client-1")
    yield RunProgressed(at_s=start_s + 90, run="r2", tasks=900, finished=411, erred=37, processing=0)
    yield RunEnded(at_s=start_s + 92, run="r2", status="error", reason="ZeroDivisionError in price-17", elapsed_s=30.1)
    yield RunSubmitted(at_s=now_s - 75, run="r3", name="kmeans", tasks=5200, client="Client-2")
    yield RunProgressed(at_s=now_s - 1, run="r3", tasks=5200, finished=3120, erred=3, processing=32)
    yield RunSubmitted(at_s=now_s - 2, run="r4", name="heat", tasks=64, client="Client-2")
