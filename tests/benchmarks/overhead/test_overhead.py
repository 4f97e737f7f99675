"""What swarm adds to Dask's own cost of a task: CPU of scheduler and workers, with and without the preloads.

    pytest tests/benchmarks/overhead --benchmark-only

starts real processes and prints a table. More repetitions make the figures surer: `SWARM_BENCH_PAIRS` pairs of fresh
clusters (5), `SWARM_BENCH_TURNS` turns for each (10), `SWARM_BENCH_TASKS` tasks in each turn (1,000): so each cluster
runs 10,000 tasks, in small helpings, because what else the machine does changes from second to second.
"""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

from tests.benchmarks.overhead.side_by_side import Turn, measure, ratios, report

PAIRS = int(os.environ.get("SWARM_BENCH_PAIRS", "5"))
TURNS = int(os.environ.get("SWARM_BENCH_TURNS", "10"))
TASKS = int(os.environ.get("SWARM_BENCH_TASKS", "1000"))
WORKERS = 2
BUDGET_RATIO = 1.05
"""Of CPU per task, at the scheduler and at the workers."""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("dashboard", [False, True], ids=["no-dashboard", "dashboard"])
def test_swarm_costs_at_most_a_twentieth_of_dask(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], dashboard: bool
) -> None:
    """Fails when a median is above the budget; says so when its interval reaches above it.

    The timings of the benchmark itself are those of whole pairs; the figures are in the table and in extra_info.
    """
    turns: list[Turn] = []

    def pair() -> None:
        number = turns[-1].pair + 1 if turns else 0
        turns.extend(measure(number, turns=TURNS, tasks=TASKS, workers=WORKERS, dashboard=dashboard))

    benchmark.pedantic(pair, rounds=PAIRS)
    work = f"{TURNS * TASKS:,} tasks that do nothing, {WORKERS} workers, dashboard {'on' if dashboard else 'off'}"
    title = f"{work}, {PAIRS} pairs of fresh clusters; medians over {len(turns)} turns (95 % interval)"
    with capsys.disabled():
        Console(width=150).print("", report(turns, title), sep="\n")
    found = ratios(turns)
    benchmark.extra_info["ratio"] = {name: [each.median, each.low, each.high] for name, each in found.items()}
    cpu = {name: found[name] for name in ("scheduler CPU", "workers CPU")}
    unsure = [name for name, each in cpu.items() if each.low <= BUDGET_RATIO < each.high]
    over = [f"{name}: {each.text(3)}" for name, each in cpu.items() if each.median > BUDGET_RATIO]
    if unsure:
        with capsys.disabled():
            print(f"Not sure that {' and '.join(unsure)} is within {BUDGET_RATIO}: repeat with more pairs, or when")
            print("the machine is quieter.")
    assert not over, f"swarm / stock is above {BUDGET_RATIO}: {over}"
