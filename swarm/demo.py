"""`swarm demo` and `swarm deploy`: the main job, and a cluster that is kept running."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

import workloads
from swarm import config_sources
from swarm.client import Swarm, connect
from swarm.deploy import state
from swarm.deploy.local import LocalProcesses
from swarm.deploy.signals import stopping_on_signals
from swarm.deploy.spec import ClusterSpec
from swarm.deploy.tls import temporary_certificates
from swarm.errors import SwarmError
from swarm.telemetry.logs import LEVEL_VARIABLE, LOGGER

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from swarm.run import Explanation

ACTS = ("kmeans", "heat", "options")
POLL_S = 0.5


@dataclass(frozen=True)
class Act:
    """One workload of the demo, and how it went."""

    name: str
    tasks: int
    elapsed_s: float
    observed: str
    passed: bool
    verdict: str


def run_demo(swarm: Swarm, out: Console, err: Console) -> bool:
    """Run the workloads one after the other and print a table; True when all results are verified."""
    page = swarm.page
    where = f"scheduler {swarm.address}   dashboard {page or 'none'}"
    err.print(where, style="dim", highlight=False, soft_wrap=True)
    acts = [_act(swarm, name, err) for name in ACTS]
    out.print(_table(acts, page))
    return all(act.passed for act in acts)


def _act(swarm: Swarm, name: str, err: Console) -> Act:
    workload = workloads.create(name)
    run = swarm.submit(workload)
    run.progress(err)
    explanation = run.explain()
    facts = explanation.facts
    try:
        result = run.result()
        with err.status(f"verifying {name} …"):
            verdict = workload.verify(result)
        passed, summary = verdict.passed, verdict.summary
    except SwarmError:
        raise
    except Exception as error:  # noqa: BLE001 — what a task raised; the table says so, and the demo goes on
        passed, summary = False, f"failed: {type(error).__name__}: {error}"
    return Act(name, facts["tasks"], facts["elapsed_s"], _observed(explanation), passed, summary)


def _observed(explanation: Explanation) -> str:
    """What the swarm saw while a run was under way, in a few words."""
    facts = explanation.facts
    words = [f"{len(facts['workers'])} workers"]
    if (cpu := facts["peak_host_cpu_percent"]) is not None:
        words.append(f"host CPU up to {cpu:.0f} %")
    if (memory := facts["peak_worker_memory_percent"]) is not None:
        words.append(f"memory up to {memory:.0f} %")
    alerts = [line for line in explanation.happenings() if line.startswith("alert,")]
    words.append(f"{len(alerts)} alert{'s' * (len(alerts) != 1)}" if alerts else "no alerts")
    return ", ".join(words)


def _table(acts: list[Act], page: str | None) -> Table:
    table = Table(box=SIMPLE_HEAD, caption=f"dashboard: {page or 'none'}", caption_justify="left", pad_edge=False)
    table.add_column("")
    table.add_column("workload", style="bold", no_wrap=True)
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("verified, and what the swarm observed", overflow="fold")
    for act in acts:
        mark = Text("✓", style="green") if act.passed else Text("✗", style="bold red")
        found = Text(act.verdict).append(f"\n{act.observed}", style="dim")
        table.add_row(mark, act.name, str(act.tasks), f"{act.elapsed_s:.1f} s", found)
    return table


def run_deploy(
    out: Console,
    err: Console,
    *,
    config: Path | None,
    host: str,
    port: int,
    dashboard_port: int,
    workers: int | None,
    threads: int | None,
    memory_limit: str,
    log_directory: Path | None,
    scheduler_only: bool,
    tls: bool,
    with_demo: bool,
    monitor_duration: float | None,
) -> int:
    """Supervise a scheduler and workers in the foreground; returns the exit code.

    Ctrl-C and SIGTERM are the ordinary ways to end it, so they give 0 unless a demo was cut short.
    """
    # In a terminal the processes say no more than we do; files get all that Dask usually says.
    level = LOGGER.getEffectiveLevel() if log_directory is None else min(LOGGER.getEffectiveLevel(), logging.INFO)
    env = {
        **state.environment(config_sources.load(config)),
        LEVEL_VARIABLE: logging.getLevelName(level),
        "DASK_LOGGING__DISTRIBUTED": logging.getLevelName(level).lower(),
    }
    spec = ClusterSpec(
        workers=workers,
        threads_per_worker=threads,
        memory_limit=memory_limit,
        scheduler_only=scheduler_only,
        host=host,
        port=port,
        dashboard_port=dashboard_port,
        env=env,
        log_directory=log_directory,
        forward=log_directory is None,
    )
    code = 0
    with (
        stopping_on_signals() as stop,
        temporary_certificates() if tls else nullcontext() as for_clients,
        LocalProcesses(spec, on_progress=lambda line: err.print(line, style="dim", highlight=False)) as cluster,
    ):
        if cluster.dashboard_link:
            page = cluster.dashboard_link.replace("/status", "/swarm")
            err.print(f"dashboard at {page}", highlight=False, soft_wrap=True)
        if for_clients is not None:
            err.print(f"clients need DASK_CONFIG={for_clients}", highlight=False, soft_wrap=True)
        err.print("Ctrl-C stops them all", style="dim")
        started = time.monotonic()
        if with_demo:
            code = 1  # until it has ended well
            with connect(cluster.address, config=config) as swarm:
                code = 0 if run_demo(swarm, out, err) else 1
        while not cluster.shut_down:
            if monitor_duration is not None and time.monotonic() - started >= monitor_duration:
                break
            cluster.poll()  # which logs what it finds and does
            time.sleep(POLL_S)
    why = f", stopped by {stop.signal.name}" if stop.signal else ""
    err.print(f"all processes have ended{why}", style="dim")
    return code
