"""What Dask's scheduler and workers spend on this machine, measured on real clusters, and how well the twin then does.

    python -m swarm.twin.calibrate

starts `dask scheduler` and `dask worker` processes on this machine, some workers of one thread and of several, has them
run tasks that do nothing and tasks that sleep, fits what `SchedulerCpu` charges, and prints what to simulate this
machine with. Run it when nothing else runs.
"""

from __future__ import annotations

import itertools
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import psutil
from distributed import Client, get_task_stream, wait
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.errors import SwarmError
from swarm.terminal import OneLine, Refusal
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.models import Constant, SchedulerCpu, uniform
from swarm.twin.outcome import Outcome
from swarm.twin.work import independent

CLUSTERS = ((1, 1), (2, 1), (8, 1), (1, 8), (4, 4))
"""(workers, threads of each). How many messages travel together depends on it."""
SLEEPS_S = (0.0, 0.005, 0.02)
"""Length of the tasks; 0: they do nothing."""
ABOUT_S = 4.0
"""So long a submission should take; of long tasks it has fewer."""
LEAST_TASKS = 200
TIMEOUT_S = 120.0
QUIET_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One submission: what it took, and what the scheduler's process spent beyond what it spends when idle."""

    workers: int
    threads: int
    tasks: int
    sleep_s: float | None
    """None: only a graph, whose tasks no worker may run."""
    wall_s: float
    scheduler_cpu_s: float
    batches: int
    """That the scheduler sent."""
    worker_cpu_s: float
    """Of all workers together."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured."""

    scheduler: SchedulerCpu
    error_ratio: float
    """How far the fit is off, root of the mean square over the samples."""
    idle_share: float
    """Of one CPU that a scheduler spends when nothing happens. Not in the twin."""
    task_overhead_s: float
    """As `WorkerModel.task_overhead_s`."""
    task_cpu_s: float
    """CPU of a worker for each task that does nothing. Where workers outnumber cores they wait for each other, which
    the twin does not know."""
    samples: Sequence[Sample]


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(tasks: int = 2000, rounds: int = 2, on_sample: Callable[[], object] = int) -> Calibration:
    """`rounds` submissions of each kind to each cluster, after one that warms up."""
    samples: list[Sample] = []
    idle: list[float] = []
    gaps: list[float] = []
    for workers, threads in CLUSTERS:
        spec = ClusterSpec(
            workers=workers, threads_per_worker=threads, nanny=False, dashboard_port=None,
            scheduler_preload=(), worker_preload=(),
        )  # fmt: skip
        with LocalProcesses(spec) as cluster, Client(cluster.address, set_as_default=False) as client:
            scheduler = psutil.Process(cluster.processes["scheduler"])
            others = [psutil.Process(pid) for name, pid in cluster.processes.items() if name != "scheduler"]
            _submit(client, tasks, 0.0)
            _settle(client)
            idle.append(_idle_share(scheduler))
            for sleep_s in (None, *SLEEPS_S):
                count = max(LEAST_TASKS, min(tasks, int(ABOUT_S * workers * threads / sleep_s))) if sleep_s else tasks
                for _ in range(rounds):
                    sample = _sample(client, scheduler, others, count, sleep_s)
                    idle_s = idle[-1] * sample.wall_s
                    busy_s = max(0.0, sample.scheduler_cpu_s - idle_s)
                    samples.append(replace(sample, workers=workers, threads=threads, scheduler_cpu_s=busy_s))
                    on_sample()
            if workers == threads == 1:
                gaps.append(_gap_s(client, tasks=200))
    cpu, error_ratio = fit(samples)
    empty = [sample.worker_cpu_s / sample.tasks for sample in samples if sample.sleep_s == 0.0]
    return Calibration(
        cpu, error_ratio, statistics.median(idle), statistics.median(gaps), statistics.median(empty), samples
    )


def fit(samples: Sequence[Sample]) -> tuple[SchedulerCpu, float]:
    """Least squares of the relative errors, no cost below zero, and the error that is left.

    A task is one message to the scheduler. What only repeats itself, such as heartbeats, is in the idle share.

    >>> like = Sample(1, 1, 1000, None, 1.0, 0.05, 0, 0.0)
    >>> runs = [replace(like, sleep_s=0.0, scheduler_cpu_s=0.15 + n * 3e-4, batches=n) for n in (500, 2000)]
    >>> cpu, error_ratio = fit([like, *runs])
    >>> f"{cpu.message_s:.1e} {cpu.batch_s:.1e} {cpu.graph_task_s:.1e} {error_ratio:.3f}"
    '1.0e-04 3.0e-04 5.0e-05 0.000'
    """
    counts = [(s.tasks if s.sleep_s is not None else 0, s.batches, s.tasks) for s in samples if s.scheduler_cpu_s > 0]
    took = np.array([s.scheduler_cpu_s for s in samples if s.scheduler_cpu_s > 0])
    if len(took) < 3:
        raise SwarmError("the scheduler used too little CPU to be measured; give more --tasks")
    relative = np.array(counts, float) / took[:, None]
    cost = np.zeros(3)
    positive = [0, 1, 2]
    while positive:
        found, *_ = np.linalg.lstsq(relative[:, positive], np.ones(len(took)), rcond=None)
        if (found >= 0).all():
            cost[positive] = found
            break
        positive.remove(positive[int(np.argmin(found))])
    error = relative @ cost - 1.0
    message_s, batch_s, graph_task_s = map(float, cost)
    return SchedulerCpu(message_s, batch_s=batch_s, graph_task_s=graph_task_s), float(np.sqrt(np.mean(error**2)))


def _sample(
    client: Client, scheduler: psutil.Process, workers: Sequence[psutil.Process], tasks: int, sleep_s: float | None
) -> Sample:
    batches, cpu_s, worker_s = _batches(client), _cpu_s(scheduler), sum(map(_cpu_s, workers))
    wall_s = _submit(client, tasks, sleep_s)
    cpu_s, worker_s = _cpu_s(scheduler) - cpu_s, sum(map(_cpu_s, workers)) - worker_s
    batches = _batches(client) - batches
    _settle(client)
    return Sample(0, 0, tasks, sleep_s, wall_s, cpu_s, batches, worker_s)


def _submit(client: Client, tasks: int, sleep_s: float | None) -> float:
    """Seconds until it is done; the results are let go."""
    began_s = time.monotonic()
    with client.as_current():
        if sleep_s is None:
            futures = client.map(operator.pos, range(tasks), pure=False, workers=["nowhere"])
            _wait_until(lambda: _known(client) >= tasks)
        else:
            does = (operator.pos, range(tasks)) if sleep_s == 0.0 else (time.sleep, [sleep_s] * tasks)
            futures = client.map(*does, pure=False)
            wait(futures, timeout=TIMEOUT_S)
        took_s = time.monotonic() - began_s
        del futures
    return took_s


def _settle(client: Client) -> None:
    """Until all is forgotten, and what the workers say to that has been heard."""
    _wait_until(lambda: _known(client) == 0)
    time.sleep(0.5)


def _known(client: Client) -> int:
    return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def _batches(client: Client) -> int:
    """What all streams of the scheduler have sent so far (`distributed.batched.BatchedSend`)."""

    def count(dask_scheduler: Any) -> int:
        streams = (*dask_scheduler.stream_comms.values(), *dask_scheduler.client_comms.values())
        return sum(stream.batch_count for stream in streams)

    return int(client.run_on_scheduler(count))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SwarmError(f"the scheduler did not settle within {TIMEOUT_S:g} s; is the machine busy?")
        time.sleep(0.05)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _idle_share(scheduler: psutil.Process) -> float:
    before_s, began_s = _cpu_s(scheduler), time.monotonic()
    time.sleep(QUIET_S)
    return (_cpu_s(scheduler) - before_s) / (time.monotonic() - began_s)


def _gap_s(client: Client, tasks: int) -> float:
    """Median time between the end of a task and the start of the next one on the same thread."""
    with client.as_current(), get_task_stream(client) as stream:
        wait(client.map(time.sleep, [0.01] * tasks, pure=False))
    spans = sorted((span["start"], span["stop"]) for task in stream.data for span in task["startstops"])
    return float(statistics.median(after[0] - before[1] for before, after in itertools.pairwise(spans)))


# -- the twin beside it --------------------------------------------------------------------------------------------


def beside(found: Calibration) -> Iterator[tuple[Sample, Outcome]]:
    """Each kind of submission that ran (the median of its rounds), and what the calibrated twin makes of it."""
    ran = [sample for sample in found.samples if sample.sleep_s is not None]
    kinds = {(s.workers, s.threads, s.sleep_s): s for s in sorted(ran, key=lambda sample: sample.wall_s)}
    jobs = []
    for workers, threads, sleep_s in kinds:
        assert sleep_s is not None
        same = [s for s in ran if (s.workers, s.threads, s.sleep_s) == (workers, threads, sleep_s)]
        kinds[workers, threads, sleep_s] = replace(
            same[0],
            wall_s=statistics.median(s.wall_s for s in same),
            scheduler_cpu_s=statistics.median(s.scheduler_cpu_s for s in same),
        )
        cluster = uniform(workers, threads, scheduler=found.scheduler)
        models = [replace(worker, task_overhead_s=found.task_overhead_s) for worker in cluster.workers]
        jobs.append(Job((independent(same[0].tasks, Constant(sleep_s)), replace(cluster, workers=models)), {}))
    for sample, answer in zip(kinds.values(), simulate_all(jobs), strict=True):
        if not isinstance(answer, Outcome):
            raise answer
        yield sample, answer


def _order(sample: Sample) -> tuple[int, float]:
    return CLUSTERS.index((sample.workers, sample.threads)), sample.sleep_s or 0.0


def _table(pairs: Sequence[tuple[Sample, Outcome]]) -> Table:
    shown = Table(title="the calibrated twin beside what was measured", title_justify="left", title_style="bold")
    for heading in ("cluster", "tasks of", "real", "twin", "twin / real", "scheduler's CPU"):
        shown.add_column(heading, justify="right")
    for sample, outcome in sorted(pairs, key=lambda pair: _order(pair[0])):
        shown.add_row(
            f"{sample.workers} × {sample.threads}",
            f"{1000 * (sample.sleep_s or 0):g} ms",
            f"{sample.wall_s:.2f} s",
            f"{outcome.makespan_s:.2f} s",
            f"{outcome.makespan_s / sample.wall_s:.2f}",
            f"{outcome.scheduler_cpu_s / sample.scheduler_cpu_s:.2f}" if sample.scheduler_cpu_s else "–",
        )
    return shown


@click.command(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tasks", default=2000, show_default=True, type=click.IntRange(100), help="Tasks of each submission.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1), help="Submissions of each kind.")
def main(tasks: int, rounds: int) -> None:
    """Measure what Dask's scheduler spends on this machine, and try the twin with it."""
    console = Console()
    columns = (TextColumn("real clusters run short tasks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("", total=len(CLUSTERS) * (1 + len(SLEEPS_S)) * rounds)
            found = measure(tasks, rounds, lambda: progress.advance(bar))
        pairs = list(beside(found))
    except SwarmError as error:
        raise Refusal(str(error), error.exit_code) from None
    cpu = found.scheduler
    fields = f"message_s={cpu.message_s:.2e}, batch_s={cpu.batch_s:.2e}, graph_task_s={cpu.graph_task_s:.2e}"
    fitted = f"The fit is off by {found.error_ratio:.0%} (root mean square)."
    spent = (
        f"{found.idle_share:.1%} of a CPU by an idle scheduler, {1000 * found.task_cpu_s:.2g} ms per task by a worker"
    )
    for line in (
        f"SchedulerCpu({fields})",
        f"WorkerModel(…, task_overhead_s={found.task_overhead_s:.2e})",
        f"{fitted} Also spent, and not in the twin: {spent}.",
    ):
        console.print(line, highlight=False)
    console.print(_table(pairs))


if __name__ == "__main__":
    main()
