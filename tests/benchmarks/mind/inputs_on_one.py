"""Short tasks whose inputs lie on one worker: stock Dask and swarm in turns, cold and warm.

    python -m tests.benchmarks.mind.inputs_on_one --runs 3 --json inputs.json

2,000 tasks that sleep for 10 ms on 8 workers of one thread, each with a small input of its own that only the first
worker has, each run on fresh processes. Cold is the first submission, warm the second to the same cluster. Nobody is
quicker than 2.5 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed import Client, wait
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.twin.matrix import versions
from tests.benchmarks.mind import tiles
from tests.benchmarks.overhead.side_by_side import PRELOADS, Mode

TASKS, SLEEP_S, WORKERS = 2000, 0.01, 8
BOUND_S = TASKS * SLEEP_S / WORKERS
PASSES = ("cold", "warm")
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Run:
    """One submission."""

    run: int
    mode: Mode
    which: str
    took_s: float


def submit(client: Client, number: int) -> float:
    """Seconds until all results are there."""
    first = min(client.scheduler_info(n_workers=-1)["workers"])
    inputs = client.scatter([(number, i) for i in range(TASKS)], workers=[first], hash=False)
    began_s = time.perf_counter()
    futures = client.map(tiles.gemm, [SLEEP_S] * TASKS, inputs, pure=False)
    wait(futures, timeout=TIMEOUT_S)
    took_s = time.perf_counter() - began_s
    assert all(future.status == "finished" for future in futures)
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
    with LocalProcesses(spec) as processes, Client(processes.address) as client:
        client.wait_for_workers(WORKERS)
        client.run(tiles.gemm, 0.0)  # the workers import the function
        return [Run(number, mode, which, submit(client, at)) for at, which in enumerate(PASSES)]


def run_all(runs: int) -> list[Run]:
    order: list[tuple[int, Mode]] = []
    for number in range(runs):
        modes: tuple[Mode, Mode] = ("stock", "swarm") if number % 2 == 0 else ("swarm", "stock")
        order += [(number, mode) for mode in modes]
    steps = track(order, "running", console=Console(stderr=True), transient=True)
    return [run for number, mode in steps for run in measure(number, mode)]


def table(runs: Sequence[Run]) -> Table:
    shown = Table(
        title=f"{TASKS:,} tasks of {1000 * SLEEP_S:.0f} ms with inputs on one of {WORKERS} workers",
        title_justify="left", box=MARKDOWN, caption=f"lower bound {BOUND_S:.2f} s", caption_justify="left",
    )  # fmt: skip
    for heading in ("", "pass", "median s", "least … most", "/ bound"):
        shown.add_column(heading, justify="right" if heading not in ("", "pass") else "left", no_wrap=True)
    for mode in PRELOADS:
        for which in PASSES:
            took_s = [run.took_s for run in runs if (run.mode, run.which) == (mode, which)]
            middle_s = statistics.median(took_s)
            spread = f"{min(took_s):.2f} … {max(took_s):.2f}"
            shown.add_row(mode, which, f"{middle_s:.2f}", spread, f"{middle_s / BOUND_S:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mind.inputs_on_one",
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
        told = {"versions": versions(), "bound_s": BOUND_S, "runs": [asdict(run) for run in runs]}
        given.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
