"""What durability costs: the same tasks with it and without, in turn, on a local cluster of real processes.

python -m tests.benchmarks.durable --rounds 5 --tasks 200 --seconds 0.05 --megabytes 1
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from dask.delayed import delayed
from rich.console import Console
from rich.table import Table

import swarm
from tests.support.supervised import supervised


def work(number: int, seconds: float, size_bytes: int) -> np.ndarray:
    """Compute for so long, and return an array of so many bytes."""
    until = time.perf_counter() + seconds
    made = np.random.default_rng(number).random(max(1, size_bytes // 8))
    while time.perf_counter() < until:
        made[:1000].sum()
    return made


def sleep(number: int, seconds: float, size_bytes: int) -> np.ndarray:
    """Wait for so long, and return an array of so many bytes."""
    time.sleep(seconds)
    return np.full(max(1, size_bytes // 8), float(number))


def total(*parts: np.ndarray) -> float:
    return float(sum(part[0] for part in parts))


KINDS = {"sleeping": sleep, "computing": work}


def measure(kind: str, tasks: int, seconds: float, size_bytes: int, rounds: int, workers: int) -> dict[str, object]:
    """Medians of the time of a run with and without durability."""
    times: dict[bool, list[float]] = {False: [], True: []}
    stored = []
    with (
        tempfile.TemporaryDirectory() as folder,
        supervised(Path(folder), workers=workers) as cluster,
        swarm.connect(cluster.address) as connected,
    ):
        for number in range(2 * (rounds + 1)):
            durable = bool(number % 2)
            task = delayed(KINDS[kind], pure=False)
            graph = delayed(total, pure=False)(*(task(i, seconds, size_bytes) for i in range(tasks)))
            began_s = time.perf_counter()
            run = connected.submit(graph, durable=durable)
            connected.client.gather(list(run.futures.values()))
            if number >= 2:  # the first two warm up
                times[durable].append(time.perf_counter() - began_s)
            if durable:
                [row] = connected.durable_runs()["runs"]
                stored.append(row["stored"])
                run.result()
            del run
    off_s, on_s = statistics.median(times[False]), statistics.median(times[True])
    return {
        "kind": kind,
        "tasks": tasks,
        "seconds": seconds,
        "size_bytes": size_bytes,
        "workers": workers,
        "off_s": off_s,
        "on_s": on_s,
        "slower_percent": 100 * (on_s / off_s - 1),
        "stored": statistics.median(stored),
        "all_off_s": times[False],
        "all_on_s": times[True],
    }


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--tasks", default=200, show_default=True)
@click.option("--seconds", default=0.05, show_default=True, help="Of each task.")
@click.option("--megabytes", default=1.0, show_default=True, help="Of each result.")
@click.option("--workers", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(rounds: int, tasks: int, seconds: float, megabytes: float, workers: int, json_file: Path | None) -> None:
    """Measure, and draw a table."""
    rows = [measure(kind, tasks, seconds, int(megabytes * 1e6), rounds, workers) for kind in KINDS]
    table = Table("tasks", "of", "result", "off", "on", "slower", "stored when it ended")
    for row in rows:
        table.add_row(
            f"{row['tasks']} {row['kind']}",
            f"{1000 * seconds:g} ms",
            f"{megabytes:g} MB",
            f"{row['off_s']:.2f} s",
            f"{row['on_s']:.2f} s",
            f"{row['slower_percent']:.1f} %",
            f"{row['stored']:g}",
        )
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
