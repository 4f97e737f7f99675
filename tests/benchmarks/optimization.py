"""What the optimization agent gains, and what it costs where nothing is to be gained.

python -m tests.benchmarks.optimization --rounds 7 --json out.json

A worker in a process of its own; batches of the same tasks with the agent and without, in turn. "With" is measured once
the agent's experiments have ended: what they cost until then is told too, in tasks and in time. Without the agent its
teardown has put everything back, which is measured by this as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from distributed import Client, LocalCluster, Worker
from rich.console import Console
from rich.table import Table

from swarm.agents.kinds.optimization import OptimizationAgent
from swarm.channels.messages import Message
from swarm.config import Settings

CYCLE_S = 0.25


def records(number: int) -> int:
    """Many small objects that live as long as the task, as from parsing JSON."""
    made = [{"id": i, "tags": [number, i], "at": (i, i)} for i in range(20_000)]
    return sum(len(record["tags"]) for record in made)


def heat(number: int) -> float:
    """Sixteen steps on a block that does not fit into a core's cache."""
    from workloads.kernels.stencil import heat_steps

    block = np.random.default_rng(number).random((112, 112, 112))
    return float(heat_steps(block, 0.125, 16, (True,) * 6)[56, 56, 56])


def spin(number: int) -> float:
    """Nothing that a setting changes: arithmetic on one float."""
    value = float(number)
    for _ in range(60_000):
        value = value * 0.999 + 1.0
    return value


CASES: dict[str, tuple[Callable[[int], Any], int]] = {"records": (records, 60), "heat": (heat, 40), "spin": (spin, 300)}
"""Function, and tasks of a batch."""


@dataclass
class _OnWorker:
    """The agent's life on the worker, without the swarm around it: for `Client.run`."""

    agent: OptimizationAgent
    loop: asyncio.Task[None]


async def start_agent(state: dict[str, Any] | None, dask_worker: Worker) -> None:
    agent = OptimizationAgent("optimizer", seed=7)
    audit: list[dict[str, Any]] = []
    agent.surroundings = SimpleNamespace(  # type: ignore[assignment] # no messages to others here
        settings=Settings(),
        log=logging.getLogger("benchmark"),
        voice=None,
        place=dask_worker.address,
        dask=dask_worker,
        audit=lambda what, **about: audit.append({"what": what, **about}),
    )
    agent.surroundings.log.info = lambda *_, **__: None  # type: ignore[method-assign]
    if state:
        agent.restore(state)
    await agent.setup()
    dask_worker.swarm_benchmark = _OnWorker(agent, asyncio.create_task(_live(agent)))  # type: ignore[attr-defined]


async def _live(agent: OptimizationAgent) -> None:
    while True:
        await asyncio.sleep(CYCLE_S)
        await agent.execute_cycle()
        agent.optimize_performance()


async def stop_agent(dask_worker: Worker) -> dict[str, Any]:
    on_worker: _OnWorker = dask_worker.swarm_benchmark  # type: ignore[attr-defined]
    on_worker.loop.cancel()
    state = on_worker.agent.state()
    await on_worker.agent.teardown()
    return state


async def ask(kind: str, dask_worker: Worker) -> Any:
    on_worker: _OnWorker = dask_worker.swarm_benchmark  # type: ignore[attr-defined]
    if on_worker.loop.done():
        on_worker.loop.result()
    return on_worker.agent.handle_message(Message("benchmark", "optimizer", kind))


def on_the_worker(client: Client, function: Callable[..., Any], *arguments: Any) -> Any:
    [answer] = client.run(function, *arguments).values()
    return answer


def batch_s(client: Client, function: Callable[[int], Any], tasks: int) -> tuple[float, float]:
    """Time that passed, and CPU time of the worker's process, in which other load on the host hardly shows."""
    began_cpu_s, began_s = on_the_worker(client, time.process_time), time.perf_counter()
    client.gather(client.map(function, range(tasks), pure=False))
    return time.perf_counter() - began_s, on_the_worker(client, time.process_time) - began_cpu_s


def learn(client: Client, function: Callable[[int], Any], tasks: int, limit_s: float) -> dict[str, Any]:
    """Batches until no experiment runs and none has begun for two batches."""
    on_the_worker(client, start_agent, None)
    began_s, quiet, run = time.perf_counter(), 0, 0
    while quiet < 3 and time.perf_counter() - began_s < limit_s:
        batch_s(client, function, tasks)
        run += tasks
        quiet = 0 if on_the_worker(client, ask, "experiments")["running"] else quiet + 1
    told = on_the_worker(client, ask, "experiments")
    counters = on_the_worker(client, ask, "counters")
    state = on_the_worker(client, stop_agent)
    return {"tasks": run, "seconds": time.perf_counter() - began_s, "told": told, "counters": counters, "state": state}


def measure(name: str, rounds: int, limit_s: float) -> dict[str, Any]:
    function, tasks = CASES[name]
    times: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        batch_s(client, function, tasks)
        learned = learn(client, function, tasks, limit_s)
        for number in range(rounds):
            for kind in ("without", "with") if number % 2 else ("with", "without"):
                if kind == "with":
                    on_the_worker(client, start_agent, learned["state"])
                    time.sleep(4 * CYCLE_S)
                batch_s(client, function, 10)
                times[kind].append(batch_s(client, function, tasks))
                if kind == "with":
                    on_the_worker(client, stop_agent)
    figures: dict[str, Any] = {}
    for at, what in enumerate(("wall", "cpu")):
        on, off = ([batch[at] for batch in times[kind]] for kind in ("with", "without"))
        ratios = sorted(a / b for a, b in zip(on, off, strict=True))
        figures[what] = {
            "without_ms_per_task": 1e3 * statistics.median(off) / tasks,
            "with_ms_per_task": 1e3 * statistics.median(on) / tasks,
            "ratio": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        }
    return {
        "case": name,
        "tasks_of_a_batch": tasks,
        **figures,
        "all_s": times,
        "learning": {name: learned[name] for name in ("tasks", "seconds")},
        "trials": learned["told"]["trials"],
        "settings": learned["told"]["settings"],
        "counters": learned["counters"],
    }


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Batches with the agent, and as many without.")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="By default all.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds that experiments of a case may take.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(rounds: int, cases: tuple[str, ...], limit: float, json_file: Path | None) -> None:
    """Measure, and draw a table."""
    rows = [measure(name, rounds, limit) for name in cases or CASES]
    table = Table("tasks", "", "without", "with", "ratio (quartiles)", "settings", "found out in")
    for row, what in ((row, what) for row in rows for what in ("wall", "cpu")):
        of = row[what]
        low, high = of["quartiles"]
        table.add_row(
            row["case"],
            what,
            f"{of['without_ms_per_task']:.2f} ms",
            f"{of['with_ms_per_task']:.2f} ms",
            f"{of['ratio']:.3f} ({low:.3f} – {high:.3f})",
            ", ".join(f"{setting['knob']} = {setting['value']}" for setting in row["settings"]) or "as it was",
            f"{row['learning']['tasks']} tasks, {row['learning']['seconds']:.0f} s",
        )
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
