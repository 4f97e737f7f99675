"""What the scheduler's CPU spends on a message and on a task of a graph, and a worker between two tasks, measured.

    python -m swarm.twin.calibrate

starts `dask scheduler` and `dask worker` processes on this machine, runs tasks that do nothing and tasks that sleep,
and prints what to simulate this machine with. Run it when nothing else runs.
"""

from __future__ import annotations

import itertools
import operator
import statistics
import time
from dataclasses import dataclass

import click
import psutil
from distributed import Client, get_task_stream, wait
from rich.console import Console

from swarm.cli import OneLine, Refusal
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.errors import SwarmError
from swarm.twin.models import SchedulerCpu

FORGET_TIMEOUT_S = 60.0


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _wait_until(client: Client, tasks: int) -> None:
    """Until the scheduler knows so many tasks."""
    deadline_s = time.monotonic() + FORGET_TIMEOUT_S
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) != tasks:
        if time.monotonic() > deadline_s:
            raise SwarmError(f"the scheduler did not come to {tasks} tasks within {FORGET_TIMEOUT_S:g} s")
        time.sleep(0.05)


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    scheduler: SchedulerCpu
    task_overhead_s: float
    """As `WorkerModel.task_overhead_s`."""


def measure(tasks: int = 2000, rounds: int = 5) -> Calibration:
    """Medians over `rounds` submissions of `tasks` tasks, to a scheduler without and with workers.

    Without workers only the graph costs; with them each task adds one message, and all that follows from it. What a
    worker needs between two tasks is the median gap on its only thread, of tasks that sleep 10 ms.
    """
    spec = ClusterSpec(
        workers=1, threads_per_worker=1, nanny=False, dashboard_port=None, scheduler_preload=(), worker_preload=()
    )
    graph_s: list[float] = []
    whole_s: list[float] = []
    with LocalProcesses(spec) as cluster, Client(cluster.address, set_as_default=False) as client:
        scheduler = psutil.Process(cluster.processes["scheduler"])
        for number in range(rounds + 1):  # the first one warms up
            for found, restrict in ((graph_s, ["nowhere"]), (whole_s, None)):
                before_s = _cpu_s(scheduler)
                futures = client.map(operator.pos, range(tasks), pure=False, workers=restrict)
                if restrict:
                    _wait_until(client, tasks)
                else:
                    with client.as_current():
                        wait(futures)
                used_s = _cpu_s(scheduler) - before_s
                if number:
                    found.append(used_s / tasks)
                del futures
                _wait_until(client, 0)
        overhead_s = _gap_s(client, tasks=200)
    graph = statistics.median(graph_s)
    return Calibration(SchedulerCpu(max(0.0, statistics.median(whole_s) - graph), graph), overhead_s)


def _gap_s(client: Client, tasks: int) -> float:
    """Median time between the end of a task and the start of the next one on the same thread."""
    with client.as_current(), get_task_stream(client) as stream:
        wait(client.map(time.sleep, [0.01] * tasks, pure=False))
    spans = sorted((span["start"], span["stop"]) for task in stream.data for span in task["startstops"])
    return float(statistics.median(after[0] - before[1] for before, after in itertools.pairwise(spans)))


@click.command(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tasks", default=2000, show_default=True, type=click.IntRange(100), help="Tasks of each submission.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Submissions of each kind.")
def main(tasks: int, rounds: int) -> None:
    """Measure what Dask's scheduler spends on this machine."""
    console = Console()
    with console.status("a real cluster runs tasks that do nothing"):
        try:
            found = measure(tasks, rounds)
        except SwarmError as error:
            raise Refusal(str(error), error.exit_code) from None
    cpu, gap_s = found.scheduler, found.task_overhead_s
    lines = (
        f"SchedulerCpu(message_s={cpu.message_s:.2e}, graph_task_s={cpu.graph_task_s:.2e})",
        f"WorkerModel(…, task_overhead_s={gap_s:.2e})",
    )
    for line in lines:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
