"""Tiled Cholesky on a real cluster of equal workers: stock Dask and swarm in turns, cold and warm.

    python -m tests.benchmarks.mind.cholesky --runs 3 --json cholesky.json

220 tasks that sleep for 0.1 s (10 × 10 tiles, right-looking) on 8 workers of one thread, each run on fresh processes.
Cold is the first submission, warm the second to the same cluster. The list schedule is HEFT with perfect knowledge and
free messages; nobody is quicker than the lower bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dask._task_spec import Task, TaskRef
from distributed import Client, wait
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.twin.bounds import heft, lower_bound_s
from swarm.twin.matrix import versions
from swarm.twin.models import ClusterModel, Cost, Key, Link, Network, WorkerModel
from swarm.twin.work import Work, made_up
from tests.benchmarks.mind import tiles
from tests.benchmarks.overhead.side_by_side import PRELOADS, Mode

TILES = 10
SLEEP_S = 0.1
WORKERS = 8
PASSES = ("cold", "warm")
TIMEOUT_S = 300.0
FUNCTIONS: dict[str, Callable[..., None]] = {
    "potrf": tiles.potrf,
    "trsm": tiles.trsm,
    "syrk": tiles.syrk,
    "gemm": tiles.gemm,
}


def factorisation(count: int) -> Iterator[tuple[Key, list[Key]]]:
    """(function, row, column, …) and what each task needs; right-looking."""
    last: dict[tuple[int, int], Key] = {}

    def task(what: str, tile: tuple[int, int], needs: Sequence[Key], *at: int) -> tuple[Key, list[Key]]:
        key, own = (what, *at), [last[tile]] if tile in last else []
        last[tile] = key
        return key, [*own, *needs]

    for k in range(count):
        yield task("potrf", (k, k), (), k)
        for i in range(k + 1, count):
            yield task("trsm", (i, k), (last[k, k],), i, k)
        for i in range(k + 1, count):
            yield task("syrk", (i, i), (last[i, k],), i, k)
            for j in range(k + 1, i):
                yield task("gemm", (i, j), (last[i, k], last[j, k]), i, j, k)


WORK: Work = made_up([(key, needs, Cost(SLEEP_S, 16)) for key, needs in factorisation(TILES)], name="Cholesky")
MODELS = [WorkerModel(f"w{i}", task_overhead_s=0.0) for i in range(WORKERS)]


def list_schedule_s() -> float:
    """Makespan of the plan of somebody who knows all costs and pays for no message."""
    cluster = ClusterModel(MODELS, Network(Link(0.0, 1e15)))
    slots = heft(WORK.order, WORK.dependencies, WORK.dependents, WORK.costs, cluster)
    return max(slot.stop_s for slot in slots)


@dataclass(frozen=True)
class Run:
    """One submission."""

    run: int
    mode: Mode
    which: str
    took_s: float


def submit(client: Client) -> float:
    """Seconds until all results are there; returns when the scheduler has forgotten them."""
    token = uuid.uuid4().hex  # Dask must not take a second submission for the first

    def name(key: Key) -> Key:
        assert isinstance(key, tuple)
        return f"{key[0]}-{token}", *key[1:]

    graph = {
        name(key): Task(name(key), FUNCTIONS[key[0]], SLEEP_S, *(TaskRef(name(need)) for need in needs))
        for key, needs in WORK.dependencies.items()
    }
    began_s = time.perf_counter()
    futures = client.get(graph, [name(key) for key in WORK.wanted], sync=False)
    with client.as_current():
        wait(futures, timeout=TIMEOUT_S)
    took_s = time.perf_counter() - began_s
    assert all(future.status == "finished" for future in futures)
    del futures
    deadline_s = time.monotonic() + TIMEOUT_S
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline_s, "the scheduler still knows tasks"
        time.sleep(0.05)
    return took_s


def measure(number: int, mode: Mode) -> list[Run]:
    """Cold and warm on processes of their own."""
    scheduler_preload, worker_preload = PRELOADS[mode]
    spec = ClusterSpec(
        workers=WORKERS,
        threads_per_worker=1,
        nanny=False,
        dashboard_port=None,
        env={"PYTHONHASHSEED": str(number)},
        scheduler_preload=scheduler_preload,
        worker_preload=worker_preload,
    )
    with LocalProcesses(spec) as processes, Client(processes.address, set_as_default=False) as client:
        client.wait_for_workers(WORKERS)
        client.run(tiles.gemm, 0.0)  # the workers import the functions
        return [Run(number, mode, which, submit(client)) for which in PASSES]


def run_all(runs: int) -> list[Run]:
    order: list[tuple[int, Mode]] = []
    for number in range(runs):
        modes: tuple[Mode, Mode] = ("stock", "swarm") if number % 2 == 0 else ("swarm", "stock")
        order += [(number, mode) for mode in modes]
    steps = track(order, "running", console=Console(stderr=True), transient=True)
    return [run for number, mode in steps for run in measure(number, mode)]


def table(runs: Sequence[Run]) -> Table:
    plan_s, bound_s = list_schedule_s(), lower_bound_s(WORK.total_s, WORK.critical_path_s, MODELS)
    shown = Table(
        title=f"Cholesky, {len(WORK)} tasks of {SLEEP_S} s on {WORKERS} workers", title_justify="left", box=MARKDOWN,
        caption=f"list schedule {plan_s:.2f} s, lower bound {bound_s:.2f} s", caption_justify="left",
    )  # fmt: skip
    for heading in ("", "pass", "median s", "least … most", "/ list schedule", "/ bound"):
        shown.add_column(heading, justify="right" if heading not in ("", "pass") else "left", no_wrap=True)
    for mode in PRELOADS:
        for which in PASSES:
            took_s = [run.took_s for run in runs if (run.mode, run.which) == (mode, which)]
            middle_s = statistics.median(took_s)
            shown.add_row(
                mode, which, f"{middle_s:.2f}", f"{min(took_s):.2f} … {max(took_s):.2f}",
                f"{middle_s / plan_s:.2f}", f"{middle_s / bound_s:.2f}",
            )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mind.cholesky",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3, help="how many of each (3)")
    parser.add_argument("--json", type=Path, help="write every run there")
    given = parser.parse_args()
    runs = run_all(given.runs)
    Console(width=130).print(table(runs))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        told = {"versions": versions(), "list_schedule_s": list_schedule_s(), "runs": [asdict(run) for run in runs]}
        given.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
