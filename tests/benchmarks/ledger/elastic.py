"""What the ledger gains in a run with serial phases between wide ones: `python -m tests.benchmarks.ledger.elastic`.

Two workers, processes with one thread each. Each round is a wide phase, with a few tasks for each worker, and then one
single task: numba (Monte Carlo paths) in even rounds and BLAS (products of matrices) in odd ones. Three ways:

plain
    As Dask does: one thread for each task, OMP_NUM_THREADS=1.
ledger
    Kernels and BLAS take the cores that the ledger grants. The workers say when tasks begin and end.
everyone
    Each task takes all cores of the host, and nobody asks: what `OMP_NUM_THREADS=<cores>` does. It is the same code,
    but each worker has a ledger of its own.

The three take turns, in an order that rotates, on clusters that live all the time. Printed is JSON: seconds of each
run, medians and quartiles, and the best of each way, which is what other load on the host disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from threadpoolctl import threadpool_limits

from swarm import ledger
from swarm.agents.watch.task_memory import RUNNING
from workloads.kernels import elastic, lloyd, montecarlo

WAYS = ("plain", "ledger", "everyone")
TERMS = np.array([100.0, 0.03, 0.2, 1.0])
DATES = 32


class Way(WorkerPlugin):
    """Makes a worker go one of the ways."""

    name = "way"

    def __init__(self, way: str, folder: str) -> None:
        self._way = way
        self._folder = folder

    def setup(self, worker: Worker) -> None:
        self._in_use: ledger.CoresInUse | None = None
        if self._way == "plain":
            os.environ[elastic.VARIABLE] = "1"
            return
        # Not the ledger that others on this host use.
        os.environ["XDG_RUNTIME_DIR"] = self._folder if self._way == "ledger" else worker.local_directory
        self._in_use = ledger.CoresInUse()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        if self._in_use is None:
            return
        if finish in RUNNING and start not in RUNNING:
            self._in_use.began()
        elif start in RUNNING and finish not in RUNNING:
            self._in_use.ended()

    def teardown(self, worker: Worker) -> None:
        if self._in_use is not None:
            self._in_use.close()


def tile(_: object, number: int, passes: int) -> float:
    """A task of a wide phase: passes of k-means over a tile."""
    points = np.random.default_rng(number).integers(256, size=(150_000, 3)).astype(float)
    return sum(lloyd.assign(points, points[i : i + 64].copy())[3] for i in range(passes))


def paths(_: object, number: int, batches: int) -> float:
    """The single task of an even round, in numba."""
    return float(montecarlo.price_paths(TERMS, 1, number, 0, batches * 4096, DATES).mean())


def products(_: object, number: int, times: int) -> float:
    """The single task of an odd round, in BLAS."""
    a = np.random.default_rng(number).standard_normal((1200, 1200)) / 35
    with contextlib.nullcontext() if elastic.most_cores() == 1 else ledger.cores(up_to=os.cpu_count() or 1) as lease:
        b = a
        for _ in range(times):
            b = a @ b
            if lease is not None:
                lease.refresh()
    return float(np.abs(b).sum())


def graph(run: int, rounds: int, sizes: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The tasks of a run, and the last."""
    tasks: dict[str, Any] = {}
    last: str | None = None
    for r in range(rounds):
        wide = [f"tile-{run}-{r}-{i}" for i in range(sizes.tiles)]
        tasks |= {key: (tile, last, i, sizes.passes) for i, key in enumerate(wide)}
        last = f"single-{run}-{r}"
        tasks[last] = (products, wide, r, sizes.times) if r % 2 else (paths, wide, r, sizes.batches)
    assert last is not None
    return tasks, last


@contextlib.contextmanager
def cluster(way: str, folder: str) -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        Client(workers) as client,
    ):
        client.register_plugin(Way(way, folder))
        yield client


def alone(rounds: int, sizes: argparse.Namespace) -> dict[str, float]:
    """What the phases take on one thread, added up, and what could be gained at most with all cores of two workers."""
    os.environ[elastic.VARIABLE] = "1"
    with threadpool_limits(1):
        took = {}
        for task, size in ((tile, sizes.passes), (paths, sizes.batches), (products, sizes.times)):
            task(None, 0, size)
            began_s = time.perf_counter()
            task(None, 0, size)
            took[task.__name__] = time.perf_counter() - began_s
    del os.environ[elastic.VARIABLE]
    wide_s = rounds * sizes.tiles * took["tile"] / 2
    single_s = (rounds + 1) // 2 * took["paths"] + rounds // 2 * took["products"]
    elastic.most_cores.cache_clear()
    return {"wide_s": wide_s, "single_s": single_s, "at_most": (wide_s + single_s) / (wide_s + single_s / 2)}


def measure(repeats: int, rounds: int, sizes: argparse.Namespace, folder: str) -> dict[str, Any]:
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    results: dict[str, set[float]] = {way: set() for way in WAYS}
    idle_percent = 100 - psutil.cpu_percent(interval=2)
    phases = alone(rounds, sizes)
    with ExitStack() as stack:
        clients = {way: stack.enter_context(cluster(way, folder)) for way in WAYS}
        for run in range(-1, repeats):
            for turn in range(len(WAYS)):
                way = WAYS[(run + turn) % len(WAYS)]
                tasks, last = graph(run, rounds, sizes)
                began_s = time.perf_counter()
                result = clients[way].get(tasks, last, sync=True)
                seconds = time.perf_counter() - began_s
                if run >= 0:  # the first compiles, imports and starts threads
                    took[way].append(seconds)
                    results[way].add(result)
                    print(f"{run} {way:8} {seconds:.3f} s", file=sys.stderr)
    median = {way: statistics.median(seconds) for way, seconds in took.items()}
    pairs = [p / e for p, e in zip(took["plain"], took["ledger"], strict=True)]
    return {
        "idle_percent_before": idle_percent,
        "alone": phases,
        "cores": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "sizes": vars(sizes),
        "seconds": took,
        "median_s": median,
        "quartiles_s": {way: statistics.quantiles(seconds, n=4) for way, seconds in took.items()},
        "best_s": {way: min(seconds) for way, seconds in took.items()},
        "plain_over_ledger_at_best": min(took["plain"]) / min(took["ledger"]),
        "plain_over_ledger": median["plain"] / median["ledger"],
        "plain_over_ledger_of_each_turn": pairs,
        "everyone_over_ledger": median["everyone"] / median["ledger"],
        "numba_results_are_equal": len(set.union(*results.values())) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5, help="odd: the last is numba's, and compared")
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--batches", type=int, default=96)
    parser.add_argument("--times", type=int, default=8)
    options = parser.parse_args()
    sizes = argparse.Namespace(**{k: v for k, v in vars(options).items() if k not in ("repeats", "rounds")})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASK_TEMPORARY_DIRECTORY"] = folder
        print(json.dumps(measure(options.repeats, options.rounds, sizes, folder), indent=1))


if __name__ == "__main__":
    main()
