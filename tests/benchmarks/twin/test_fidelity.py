"""Is the twin faithful? The same work on a real cluster and in the twin: makespans and steals side by side.

    pytest tests/benchmarks/twin/test_fidelity.py --benchmark-only

`SWARM_BENCH_RUNS` runs of the real cluster (3), against the median of many seeds of the twin: Dask's placement depends
on the order of sets of strings, so a real cluster has another luck in each run.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from rich.table import Table

from swarm.twin.faults import Crash, Fault, Leave
from swarm.twin.isolated import Job, simulate_all
from swarm.twin.models import Cost, LogNormal, uniform
from swarm.twin.outcome import Outcome
from swarm.twin.work import Work, fan_out, independent, layered, made_up, tree
from tests.benchmarks.twin.real_cluster import Measured, cluster, measure

RUNS = int(os.environ.get("SWARM_BENCH_RUNS", "3"))
WORKERS = 8
MAKESPAN_TOLERANCE = 0.10
STEALS_TOLERANCE = 0.25
COUNTED_STEALS = 20
"""Of fewer steals, one more or less is luck."""
SEEDS = 15
UNEVEN = LogNormal(0.1, 0.8)
WARM_UP = made_up([(f"warm-up-{i}", (), Cost(0.01)) for i in range(2 * WORKERS)])
"""With a name of its own: Dask must not have learnt anything about the tasks that are measured."""


@dataclass(frozen=True)
class Case:
    name: str
    work: Work
    faults: tuple[Fault, ...] = ()


CASES = [
    Case("independent", independent(400, UNEVEN, seed=1)),
    Case("layered", layered(10, 16, UNEVEN, seed=2, output_bytes=10_000)),
    Case("fan-out, stealing", fan_out(300, UNEVEN, roots=6, seed=6)),
    Case("tree", tree(128, UNEVEN, seed=3, output_bytes=10_000)),
    Case("killed worker", layered(10, 16, UNEVEN, seed=4), (Crash(worker="w3", at_s=1.5),)),
    Case("retired worker", layered(10, 16, UNEVEN, seed=5), (Leave(worker="w3", at_s=1.5),)),
]


@dataclass(frozen=True)
class Comparison:
    case: Case
    real: list[Measured]
    simulated: list[Outcome]

    @property
    def ratio(self) -> float:
        """Makespan of the twin over that of the real cluster, of the medians."""
        real = statistics.median(run.makespan_s for run in self.real)
        return statistics.median(run.makespan_s for run in self.simulated) / real

    @property
    def steals(self) -> tuple[float, float]:
        return statistics.median(r.steals for r in self.real), statistics.median(r.steals for r in self.simulated)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_agrees_with_a_real_cluster(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    found: list[Measured] = []

    def real() -> None:
        with cluster(WORKERS) as (processes, client):
            measure(processes, client, WARM_UP)
            found.append(measure(processes, client, case.work, case.faults))

    benchmark.pedantic(real, rounds=RUNS)
    jobs = [
        Job((case.work, uniform(WORKERS)), {"faults": case.faults, "seed": seed}, hash_seed=seed)
        for seed in range(SEEDS)
    ]
    simulated = [answer for answer in simulate_all(jobs) if isinstance(answer, Outcome)]
    assert len(simulated) == SEEDS
    comparison = Comparison(case, found, simulated)
    with capsys.disabled():
        Console(width=130).print("", _table(comparison))
    benchmark.extra_info["ratio"] = comparison.ratio
    benchmark.extra_info["steals"] = comparison.steals
    assert abs(comparison.ratio - 1) <= MAKESPAN_TOLERANCE
    real_steals, steals = comparison.steals
    if real_steals >= COUNTED_STEALS:
        assert abs(steals - real_steals) <= STEALS_TOLERANCE * real_steals


def _table(found: Comparison) -> Table:
    table = Table(title=found.case.name, title_justify="left", box=None)
    for column in ("", "makespan, s", "median", "steals", "median"):
        table.add_column(column)
    real_steals, steals = found.steals
    for name, runs, moved in (("real", found.real, real_steals), ("twin", found.simulated, steals)):
        spans = [run.makespan_s for run in runs]
        steal_counts = [run.steals for run in runs]
        table.add_row(
            name,
            f"{min(spans):.2f} … {max(spans):.2f}",
            f"{statistics.median(spans):.3f}",
            f"{min(steal_counts)} … {max(steal_counts)}",
            f"{moved:g}",
        )
    table.add_row("twin / real", "", f"{found.ratio:.3f}", "", f"{steals / real_steals:.2f}" if real_steals else "–")
    return table
