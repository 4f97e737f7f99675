"""What the thermal agent costs, what its governor loses, and how well it forecasts, beside other ways to do it."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import theilslopes

from swarm.agents.base import Surroundings
from swarm.agents.kinds.heat import Governor, Trend, heat_rule
from swarm.agents.kinds.thermal import BUDGET, ThermalAgent
from swarm.config import Settings
from swarm.telemetry.logs import get_logger
from tests.support.heat_model import HeatModel
from tests.support.thermal_tree import hwmon, rapl, write

BUDGET_S = 1e-3
"""Of CPU per cycle: 0.1 % of a core at one cycle a second."""
TURNS = 60
REST_S = 0.02
"""An agent works after a pause in which others had the caches: several times the cost of a loop."""
HORIZON_S = 10


class Budget:
    """A ledger that does nothing: what it costs is measured where it lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all_cores(self) -> int:
        return 64

    def cores_in_use(self) -> int:
        return 64

    def limit(self, **how: Any) -> None:
        pass


class Mute:
    async def broadcast(self, *_: Any) -> int:
        return 0


def agent_on(root: Path, folder: Path) -> ThermalAgent:
    agent = ThermalAgent("thermal", root=str(root))
    agent.surroundings = Surroundings(
        Settings(),
        get_logger(),
        Mute(),
        lambda *_, **__: None,
        extras={BUDGET: Budget(folder)},  # type: ignore[arg-type]
    )
    agent.setup()
    return agent


def server(root: Path, celsius: float) -> Path:
    """Two sockets with 32 cores each, a sensor for every core."""
    chips = [
        hwmon(n, "coretemp", {f"temp{core}_{what}": value for core in range(1, 34) for what, value in
                              (("input", round(celsius * 1000)), ("crit", 100_000))})
        for n in range(2)
    ]  # fmt: skip
    zones = [rapl(f"{n}{part}", name, 5) for n in range(2) for part, name in (("", f"package-{n}"), (":0", "dram"))]
    return write(root, {path: text for files in [*chips, *zones] for path, text in files.items()})


async def cpu_s_of_cycles(agent: ThermalAgent) -> list[float]:
    took = []
    for _ in range(TURNS):
        await asyncio.sleep(REST_S)
        began_s = time.thread_time()
        await agent.execute_cycle()
        took.append(time.thread_time() - began_s)
    return took


def test_a_cycle_takes_less_than_a_thousandth_of_a_core(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    figures = {}
    cool = agent_on(server(tmp_path / "sys", 60.0), tmp_path / "cool")
    hot = agent_on(server(tmp_path / "hot-sys", 79.0), tmp_path / "hot")
    hot._heat.cores = 8
    standing_by = agent_on(tmp_path / "sys", tmp_path / "cool")
    here = agent_on(Path("/"), tmp_path / "here")
    agents = {"cool_server": cool, "hot_server": hot, "standing_by": standing_by, "this_machine": here}
    for name, agent in agents.items():
        figures[f"{name}_cycle_cpu_us"] = round(1e6 * statistics.median(asyncio.run(cpu_s_of_cycles(agent))))
    assert not standing_by.status()["acts"]
    figures["this_machine_absent"] = sorted(here.absent)  # type: ignore[assignment]
    benchmark.extra_info.update(figures)
    print(figures)
    benchmark(lambda: asyncio.run(cool.execute_cycle()))
    for agent in agents.values():
        agent.teardown()
    assert all(cost < 1e6 * BUDGET_S for name, cost in figures.items() if name.endswith("_us"))


def generated_traces(n: int) -> list[list[float]]:
    """Sensors of made-up hosts under loads that come and go, one reading a second for half an hour."""
    rng = random.Random(7)
    traces = []
    for number in range(n):
        cores, core_watts = rng.choice([4, 16, 64]), rng.uniform(3, 15)
        resistance = rng.uniform(40, 90) / (cores * core_watts)
        capacity = cores * core_watts / rng.uniform(0.05, 1.0)
        host = HeatModel(
            cores,
            resistance,
            capacity,
            core_watts,
            noise_celsius=0.5,
            resolution_celsius=1.0,
            junction_k_per_w=rng.choice([0.0, 5 / (cores * core_watts)]),
            rng=random.Random(number),
        )
        load, trace = 0.0, []
        for second in range(1800):
            if second % 60 == 0 and rng.random() < 0.4:
                load = rng.uniform(0, cores)
            host.run(load, 1.0)
            trace.append(host.sensor())
        traces.append(trace)
    return traces


def holt() -> Callable[[float, float], float]:
    trend = Trend(HORIZON_S)

    def step(now_s: float, reading: float) -> float:
        trend.learn_one(now_s, reading)
        return trend.forecast(HORIZON_S)

    return step


def river_holt_winters() -> Callable[[float, float], float]:
    from river.time_series import HoltWinters

    model, seen = HoltWinters(alpha=0.39, beta=0.15), []

    def step(_: float, reading: float) -> float:
        model.learn_one(reading)
        seen.append(reading)
        return float(model.forecast(HORIZON_S)[-1]) if len(seen) > 3 else reading

    return step


def theil_sen() -> Callable[[float, float], float]:
    seen: deque[tuple[float, float]] = deque(maxlen=20)

    def step(now_s: float, reading: float) -> float:
        seen.append((now_s, reading))
        if len(seen) < 3:
            return reading
        times, values = np.array(seen).T
        slope, intercept, *_ = theilslopes(values, times)
        return float(intercept + slope * (now_s + HORIZON_S))

    return step


def nothing_changes() -> Callable[[float, float], float]:
    return lambda _, reading: reading


def mean_error(make: Callable[[], Callable[[float, float], float]], traces: list[list[float]]) -> tuple[float, float]:
    """(mean error in °C, CPU in µs per reading)."""
    errors, began_s = [], time.thread_time()
    for trace in traces:
        step = make()
        forecasts = [step(float(second), reading) for second, reading in enumerate(trace)]
        errors += [abs(f - r) for f, r in zip(forecasts[10:], trace[10 + HORIZON_S :], strict=False)]
    return statistics.fmean(errors), 1e6 * (time.thread_time() - began_s) / sum(map(len, traces))


def test_forecasts_beside_other_ways(benchmark: BenchmarkFixture) -> None:
    traces = generated_traces(6)
    figures = {}
    for make in (holt, river_holt_winters, theil_sen, nothing_changes):
        error, cost_us = mean_error(make, traces)
        figures[make.__name__] = {"mean_error_celsius": round(error, 3), "cpu_us": round(cost_us, 1)}
    benchmark.extra_info.update(figures)
    print(figures)
    benchmark(lambda: mean_error(holt, traces[:1]))
    best = min(figures[name]["mean_error_celsius"] for name in figures if name != "holt")
    assert figures["holt"]["mean_error_celsius"] <= 1.05 * best


@pytest.mark.parametrize("hosts", [60])
def test_what_the_governor_loses(benchmark: BenchmarkFixture, hosts: int) -> None:
    rng, ratios, peaks, changes = random.Random(3), [], [], []
    while len(ratios) < hosts:
        cores, core_watts, idle_watts = rng.choice([2, 4, 8, 16, 32, 64]), rng.uniform(3, 15), rng.uniform(5, 30)
        resistance = (rng.uniform(81, 160) - 25) / (idle_watts + core_watts * cores)
        host = HeatModel(cores, resistance, core_watts * cores / rng.uniform(0.05, 1.5), core_watts, idle_watts,
                         lag_s=rng.uniform(0, 3), noise_celsius=0.5, resolution_celsius=1.0)  # fmt: skip
        best = max((c for c in range(1, cores + 1) if host.end_celsius(c) <= 80), default=0)
        if not best:
            continue
        governor, peak, changed = Governor(heat_rule(85.0), cores), 0.0, 0
        for second in range(3600):
            decision = governor.decide(float(second), host.sensor(), cores_in_use=math.ceil(host.busy_cores))
            changed += decision.changed
            host.allow(decision.cores)
            for _ in range(4):
                host.run(cores, 0.25)
                peak = max(peak, host.celsius)
        ratios.append(host.work_core_s / best / 3600)
        peaks.append(peak)
        changes.append(changed)
    figures = {
        "work_of_best_constant_budget_median": round(statistics.median(ratios), 3),
        "work_of_best_constant_budget_worst": round(min(ratios), 3),
        "peak_celsius": round(max(peaks), 1),
        "changes_per_hour_median": statistics.median(changes),
        "changes_per_hour_most": max(changes),
    }
    benchmark.extra_info.update(figures)
    print(figures)
    governor = Governor(heat_rule(85.0), 64)
    clock = iter(range(10**9))
    benchmark(lambda: governor.decide(float(next(clock)), 79.0))
    assert max(peaks) < 85.0
    assert statistics.median(ratios) > 0.95
