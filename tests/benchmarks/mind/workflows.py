"""Scientific workflows in the twin: stock Dask, swarm and the oracle, on 8 to 1,000 workers that are alike or not.

    python -m tests.benchmarks.mind.workflows [FOLDER] --workers 8 --seeds 10 --json workflows.json

FOLDER holds WfFormat files, such as those of WfInstances; without it, workflows are drawn with their shapes. Instances
are put side by side until there are four tasks for each worker. Swarm runs each twice: cold, with nothing learned, and
warm, with what it has learned from the first time. "Way closed" is how much of what stock Dask takes longer than HEFT,
which knows everything beforehand, swarm saves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swarm.errors import SwarmError
from swarm.twin.matrix import versions
from tests.benchmarks.mind.passes import Passes, in_children
from tests.benchmarks.mind.workflow_cases import CLUSTERS, of_workflow
from tests.benchmarks.mind.workflow_shapes import sources

SEEDS = {8: 10, 100: 10, 1000: 1}
"""By default. A thousand workers take a minute for each workflow."""
ROOM = 0.02
"""Share by which stock Dask must be above the oracle for it to say anything what part of that was saved."""

Run = Mapping[str, Any]
"""Workflow, workers, speeds, seed, tasks, and what `Passes` has."""


def run_all(
    folder: Path | None, workers: Sequence[int], speeds: Sequence[str], seeds: int | None, only: str = ""
) -> Iterator[Run]:
    """Every workflow on every cluster with every seed, as they end."""
    names = [name for name in sources(folder) if only in name]
    where = None if folder is None else str(folder)
    batches = [
        (seed, [(where, name, count, kind, seed, 2) for name in names])
        for count in workers
        for seed in range(seeds or SEEDS.get(count, 1))
        for kind in speeds
    ]
    runs = in_children(of_workflow, batches)
    yield from track(runs, "simulating", len(batches) * len(names), console=Console(stderr=True), transient=True)


@dataclass(frozen=True)
class Summary:
    """Several seeds of one workflow on one kind of cluster: medians of makespan over bound."""

    workflow: str
    stock: float
    cold: float
    warm: float
    oracle: float
    cold_to_stock: float
    """Median over seeds of swarm's makespan over that of stock Dask."""
    warm_to_stock: float

    @property
    def has_room(self) -> bool:
        return self.stock > (1.0 + ROOM) * self.oracle

    def closed(self, what: str) -> float:
        """Of the way from stock Dask to the oracle, the part that swarm has gone."""
        return float((self.stock - getattr(self, what)) / (self.stock - self.oracle))


def summaries(runs: Sequence[Run]) -> list[Summary]:
    found = []
    for name in sorted({run["workflow"] for run in runs}):
        mine = [_passes(run).over_bound() for run in runs if run["workflow"] == name]
        ratios = zip(*mine, strict=True)
        to_stock = ([each[which] / each[0] for each in mine] for which in (1, 2))
        found.append(Summary(name, *map(statistics.median, (*ratios, *to_stock))))
    return found


def _passes(run: Run) -> Passes:
    return Passes(run["bound_s"], run["oracle_s"], run["stock_s"], run["swarm_s"])


def pooled(found: Sequence[Summary], what: str) -> float:
    """The part of the way that was gone over all workflows together, each in units of its bound."""
    gone = sum(s.stock - getattr(s, what) for s in found)
    return float(gone / sum(s.stock - s.oracle for s in found))


HEADINGS = ("stock", "cold", "warm", "HEFT", "way closed cold", "warm", "cold / stock", "warm / stock")
FIGURES = ("stock", "cold", "warm", "oracle")


def overview(runs: Sequence[Run]) -> Table:
    table = Table(
        title="makespan over bound: medians over workflows of medians over seeds", title_justify="left", box=MARKDOWN
    )
    for heading in ("workers", "speeds", "runs", *HEADINGS, "worst cold / stock"):
        is_text = heading.startswith(("speeds", "worst"))
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=is_text)
    for workers, speeds in _clusters(runs):
        mine = [run for run in runs if (run["workers"], run["speeds"]) == (workers, speeds)]
        found = summaries(mine)
        worst = max(found, key=lambda s: s.cold_to_stock)
        table.add_row(
            f"{workers:,}",
            speeds,
            str(len(mine)),
            *(f"{statistics.median(getattr(s, what) for s in found):.2f}" for what in FIGURES),
            *(f"{pooled(found, what):.0%}" for what in ("cold", "warm")),
            *(f"{statistics.median(getattr(s, f'{what}_to_stock') for s in found):.3f}" for what in ("cold", "warm")),
            f"{worst.cold_to_stock:.3f} {worst.workflow.partition('-')[0]}",
        )
    return table


def details(runs: Sequence[Run], workers: int, speeds: str) -> Table:
    table = Table(title=f"{workers:,} workers, {speeds}", title_justify="left", box=MARKDOWN)
    for heading in ("workflow", *HEADINGS):
        table.add_column(heading, justify="left" if heading == "workflow" else "right")
    for each in summaries([run for run in runs if (run["workers"], run["speeds"]) == (workers, speeds)]):
        closed = (f"{each.closed(what):.0%}" if each.has_room else "–" for what in ("cold", "warm"))
        figures = (f"{getattr(each, what):.2f}" for what in FIGURES)
        table.add_row(each.workflow, *figures, *closed, f"{each.cold_to_stock:.3f}", f"{each.warm_to_stock:.3f}")
    return table


def _clusters(runs: Sequence[Run]) -> list[tuple[int, str]]:
    kinds = list(CLUSTERS)
    return sorted({(run["workers"], run["speeds"]) for run in runs}, key=lambda each: (each[0], kinds.index(each[1])))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mind.workflows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of WfFormat files")
    parser.add_argument("--workers", type=int, action="append", help="how many; may be repeated (8, 100, 1000)")
    parser.add_argument("--speeds", choices=CLUSTERS, action="append", help="may be repeated (all)")
    parser.add_argument("--seeds", type=int, help="how many (10; 1 with 1,000 workers)")
    parser.add_argument("--only", default="", help="workflows whose names have this in them")
    parser.add_argument("--json", type=Path, help="write every run there")
    given = parser.parse_args()
    console, began_s = Console(width=150), time.perf_counter()
    try:
        runs = list(
            run_all(given.folder, given.workers or [*SEEDS], given.speeds or [*CLUSTERS], given.seeds, given.only)
        )
    except SwarmError as error:
        sys.exit(str(error))
    for workers, speeds in _clusters(runs):
        console.print(details(runs, workers, speeds))
    console.print(overview(runs))
    console.print(f"{len(runs)} cases, {time.perf_counter() - began_s:.0f} s")
    for run in runs:
        if run["trouble"]:
            about = f"{run['workflow']}, {run['workers']} workers, {run['speeds']}, seed {run['seed']}"
            console.print(f"{about}: {run['trouble']}", markup=False, soft_wrap=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"versions": versions(), "runs": runs}), encoding="utf-8")


if __name__ == "__main__":
    main()
