"""Load test: a real local cluster with many agents under a steady mixed load. Exits with 1 when a check fails.

    python tests/load_test.py --agents 32 --duration 300
    python tests/load_test.py --quick

Each worker is a process of its own with one thread, no nanny, one resource agent and one agent that writes to the
others all the time, so `--agents 32` starts 32 workers and a scheduler, at about 150 MB each.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.scheduler import heartbeat_interval
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import swarm
from scheduler_plugins.on_dask.why import KEPT
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from tests.support.chatter import Talk, start_chatting, stop_chatting
from tests.support.cluster_watch import MemoryWatch, TelemetryWatch, clock_agents, read_clock
from tests.support.processes import MARK, marked, orphaned_segments, shared_memory
from tests.support.steady_load import SteadyLoad, Tally

BATCH = 8
"""Workers that start at a time. A start takes seconds of CPU; all at once they would run into Dask's timeouts."""
START_TIMEOUT_S = 120.0
"""For each batch."""
LOOK_PERIOD_S = 0.25
"""More often than telemetry arrives, so that no arrival is missed."""
END_TIMEOUT_S = 10.0

SHORT_HISTORIES = {
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__LOG_LENGTH": "60",
    "DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY": "10",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
"""Dask keeps histories that are full only after an hour; short ones are full when the warm-up ends, and what grows
then is a leak."""
GAP_LIMIT_INTERVALS = 5.0
"""As the dashboard, which calls a worker stale then."""
P99_LIMIT_S = 1.0
GROWTH_LIMIT_BYTES_PER_MIN = {"scheduler": 2 << 20, "median worker": 1 << 20}
"""A leak of 1 MB a minute is 1.4 GB a day."""
SPAN_BYTES = 5 << 10
"""What Dask's scheduler keeps of every submission for ever (`distributed.spans` forgets no span and no task group;
measured). Not counted as growth."""
STORY_BYTES = 700
"""What swarm's scheduler keeps of a task (docs/explain.md), up to `KEPT` tasks. Not counted as growth either."""
AGENT_CPU_LIMIT_PERCENT = 1.0
"""Of one core, per worker."""
WARM_UP_SHARE = 1 / 3
"""Of the duration, in which memory may grow."""
MIB = 1 << 20


@dataclass(frozen=True)
class Check:
    """A line of the final table."""

    what: str
    measured: str
    allowed: str
    passed: bool | None
    """None: not judged."""


@dataclass(frozen=True)
class Findings:
    """All that was seen while the cluster ran."""

    agents: int
    """Counted on the workers."""
    elapsed_s: float
    tally: Tally
    telemetry: TelemetryWatch
    memory: MemoryWatch
    agent_cpu_s: dict[str, float]
    """By worker address."""
    ended: list[str]
    status: dict[str, Any]
    talk: Talk


def main() -> int:
    """Run the test as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=_positive, default=32, help="resource agents, one per worker (32)")
    parser.add_argument("--duration", type=_positive, default=300, metavar="S", help="seconds of load (300)")
    parser.add_argument("--quick", action="store_true", help="the same as --agents 4 --duration 10")
    options = parser.parse_args()
    agents, duration_s = (4, 10) if options.quick else (options.agents, options.duration)
    console = Console(width=None if sys.stdout.isatty() else 120)
    segments, mark = shared_memory(), uuid.uuid4().hex
    os.environ[MARK] = mark  # inherited by all that is started
    try:
        with started(agents, console) as cluster:
            findings = asyncio.run(load(cluster, agents, duration_s, console))
    except (swarm.SwarmError, TimeoutError) as error:
        console.print(f"load test: {error}", style="red", markup=False, highlight=False)
        return 1
    checks = [*judge(findings, agents, duration_s), *left_behind(mark, segments)]
    return report(checks, findings, console)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small, must be 1 or more")
    return number


@contextmanager
def started(agents: int, console: Console) -> Iterator[LocalProcesses]:
    """A cluster with so many workers, which start in batches."""
    spec = ClusterSpec(
        workers=min(BATCH, agents),
        threads_per_worker=1,
        memory_limit="1GiB",
        nanny=False,
        env={**SHORT_HISTORIES, "DASK_SWARM__MAX_AGENTS": str(max(agents, 32))},
    )
    console.print(f"{agents} agents: {agents} worker processes of one thread, with one resource agent each")
    with LocalProcesses(spec) as cluster, Client(cluster.address, set_as_default=False) as client:
        for first in range(BATCH, agents, BATCH):
            console.print(f"{first} of {agents} workers are ready", style="dim")
            until = min(first + BATCH, agents)
            cluster.add_workers(until - first)
            client.wait_for_workers(until, timeout=START_TIMEOUT_S)
        yield cluster


async def load(cluster: LocalProcesses, agents: int, duration_s: float, console: Console) -> Findings:
    """Load the cluster and watch it meanwhile."""
    memory, telemetry, ended = MemoryWatch(cluster.processes), TelemetryWatch(), list[str]()
    async with await swarm.connect(cluster.address, asynchronous=True) as connection:
        steady = SteadyLoad(connection, agents)
        await steady.prepare()
        names = await connection.client.run(clock_agents)
        chatters = await start_chatting(connection.orchestrator)
        start_s = time.monotonic()
        loading = asyncio.create_task(steady.run(duration_s))
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while not loading.done():
                telemetry.look(await connection.status())
                memory.look()
                ended += [change.message for change in cluster.poll()]
                elapsed_s = time.monotonic() - start_s
                live.update(progress(elapsed_s, duration_s, steady.tally, telemetry, memory), refresh=True)
                await asyncio.wait([loading], timeout=LOOK_PERIOD_S)
        await loading
        elapsed_s = time.monotonic() - start_s
        talk = await stop_chatting(connection.orchestrator, chatters)
        return Findings(
            agents=sum(map(len, names.values())),
            elapsed_s=elapsed_s,
            tally=steady.tally,
            telemetry=telemetry,
            memory=memory,
            agent_cpu_s=await connection.client.run(read_clock),
            ended=ended,
            status=await connection.status(),
            talk=talk,
        )


def progress(elapsed_s: float, duration_s: float, tally: Tally, telemetry: TelemetryWatch, memory: MemoryWatch) -> Text:
    """The live line."""
    p50_s, p99_s = _percentiles(tally.latencies_s)
    return Text(
        f"{elapsed_s:.0f} of {duration_s:.0f} s  {tally.tasks:,} tasks right, {tally.under_way} answers under way, "
        f"{len(tally.wrong)} wrong  latency {1e3 * p50_s:.0f} ms, p99 {1e3 * p99_s:.0f} ms  "
        f"telemetry gap {telemetry.largest_gap_s:.1f} s  scheduler {memory.last_bytes('scheduler') / MIB:.0f} MiB"
    )


def judge(found: Findings, agents: int, duration_s: float) -> Iterator[Check]:
    """Compare what was seen with what is allowed."""
    tally, telemetry = found.tally, found.telemetry
    yield Check("agents", f"{found.agents}", f"{agents}", found.agents == agents)
    answers = f"{tally.right} of {tally.sent} answers ({tally.tasks:,} tasks)"
    yield Check("right results", answers, "all", tally.right == tally.sent)
    interval_s = max(heartbeat_interval(agents), found.status["settings"]["monitoring_interval"])
    limit_s = GAP_LIMIT_INTERVALS * interval_s
    heard = f"{telemetry.largest_gap_s:.1f} s at most, from {len(telemetry.arrivals)} workers"
    all_heard = len(telemetry.arrivals) == agents and telemetry.largest_gap_s <= limit_s
    yield Check("gap in telemetry", heard, f"{limit_s:g} s ({interval_s:g} s is the interval)", all_heard)
    p50_s, p99_s = _percentiles(tally.latencies_s)
    latency = f"p50 {1e3 * p50_s:.0f} ms, p99 {1e3 * p99_s:.0f} ms"
    yield Check("latency of small tasks", latency, f"p99 {1e3 * P99_LIMIT_S:.0f} ms", p99_s <= P99_LIMIT_S)
    known_bytes = SPAN_BYTES * tally.sent + STORY_BYTES * min(tally.tasks, KEPT)
    yield from _talk(found.talk, agents, found.elapsed_s)
    yield from _growth(found.memory, WARM_UP_SHARE * duration_s, 60.0 * known_bytes / found.elapsed_s)
    shares = [100.0 * used_s / found.elapsed_s for used_s in found.agent_cpu_s.values()]
    cpu = f"{statistics.mean(shares):.2f} % of a core on average, {max(shares):.2f} % at most"
    yield Check(
        "CPU of the agents", cpu, f"{AGENT_CPU_LIMIT_PERCENT:g} % per worker", max(shares) <= AGENT_CPU_LIMIT_PERCENT
    )
    off = {**found.status["off"], **{part: f"failed {n} times" for part, n in found.status["failures"].items()}}
    yield Check("parts that failed", "; ".join(f"{k}: {v}" for k, v in off.items()) or "none", "none", not off)
    yield Check("processes that ended", "; ".join(found.ended) or "none", "none", not found.ended)


def _talk(talk: Talk, agents: int, elapsed_s: float) -> Iterator[Check]:
    """Whether what agents were promised came, in order."""
    kept = f"{talk.received:,} of {talk.acknowledged:,} read, {talk.acknowledged / elapsed_s:.0f}/s"
    yield Check("acknowledged messages", kept, "all", talk.agents == agents and not talk.lost and talk.acknowledged > 0)
    yield Check("messages out of order", f"{talk.out_of_order}", "0", talk.out_of_order == 0)
    failed = ", ".join(f"{n} {kind}" for kind, n in talk.failed.items()) or "none"
    yield Check("messages that failed", failed, "none", not talk.failed)
    yield Check("round trip of agents", f"p50 {talk.p50_us:.0f} µs, p99 {talk.p99_us:.0f} µs", "printed", None)


def _growth(memory: MemoryWatch, warm_up_s: float, known_bytes_per_min: float) -> Iterator[Check]:
    """Whether the resident memory of the scheduler, and of most workers, stays flat."""
    workers = [role for role in memory.seen if role != "scheduler"]
    for kind, members, known in (("scheduler", ["scheduler"], known_bytes_per_min), ("median worker", workers, 0.0)):
        slopes = [memory.growth_bytes_per_min(role, warm_up_s) for role in members]
        rates = [slope for slope in slopes if slope is not None]
        limit = GROWTH_LIMIT_BYTES_PER_MIN[kind]
        size = f"{statistics.median(map(memory.last_bytes, members)) / MIB:.0f} MiB"
        allowed = f"{limit / MIB:+.0f} MiB/min"
        what = f"memory, {kind}"
        if not rates:
            yield Check(what, f"{size}; too short to see a trend (needs a minute after the warm-up)", allowed, None)
            continue
        rate = statistics.median(rates)  # one worker of many may just have opened its connections
        grown = f"{size}, {rate / MIB:+.2f} MiB/min" + (f", {known / MIB:.2f} in spans and stories" if known else "")
        yield Check(what, grown, allowed, rate - known <= limit)


def left_behind(mark: str, segments: set[str]) -> Iterator[Check]:
    """What is left when the cluster has been closed."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while (left := [*map(str, marked(mark)), *orphaned_segments(segments)]) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    yield Check("processes and shared memory left", "; ".join(left) or "none", "none", not left)


def report(checks: list[Check], found: Findings, console: Console) -> int:
    """Print the table; returns the exit code."""
    table = Table(title=f"{found.agents} agents, {found.elapsed_s:.0f} s", title_justify="left", box=None)
    for column in ("", "check", "measured", "allowed"):
        table.add_column(column)
    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "–"}
    for check in checks:
        table.add_row(marks[check.passed], check.what, Text(check.measured), check.allowed)
    console.print(table)
    for line in [*found.tally.wrong[:10], *found.talk.lost[:10]]:
        console.print(Text(line, style="red"))
    failed = [check.what for check in checks if check.passed is False]
    console.print(Text(f"failed: {', '.join(failed)}" if failed else "passed", style="bold red" if failed else "bold"))
    return 1 if failed else 0


def _percentiles(latencies_s: list[float]) -> tuple[float, float]:
    """p50 and p99; infinite when nothing came back."""
    if len(latencies_s) < 2:
        return math.inf, math.inf
    cuts = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return cuts[49], cuts[98]


if __name__ == "__main__":
    sys.exit(main())
