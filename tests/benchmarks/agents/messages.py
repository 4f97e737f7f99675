"""How fast agents talk, from `request` to `handle_message` and to its answer: real workers, each a process.

python -m tests.benchmarks.agents.messages --requests 2000 --rounds 3

The ways take turns. "shared memory" and "socket" are between two workers of one host, "Dask" is what agents on two
hosts have, "process" adds a process of its own for each agent, "direct" is between two agents of one worker.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil
from distributed import Client
from rich.console import Console
from rich.table import Table

import swarm
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from tests.support.askers import Asker

WAYS = {
    "direct": {"same": True},
    "shared memory": {"warm_up": 1000},
    "shared memory, sealed": {"warm_up": 1000, "encrypt": True},
    "socket": {"shared_memory": False},
    "Dask": {"apart": True},
    "process": {"isolation": "process", "warm_up": 1000},
}

FIGURES = ("there_p50_us", "there_p99_us", "back_p50_us", "back_p99_us")


@contextmanager
def two_workers(way: dict[str, object]) -> Iterator[swarm.Swarm]:
    """A cluster of two workers that see each other's sockets, or not."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        env = {
            "XDG_RUNTIME_DIR": first,
            "DASK_SWARM__CHANNEL_ENCRYPTION": str(bool(way.get("encrypt", False))),
            "DASK_SWARM__SHARED_MEMORY": str(bool(way.get("shared_memory", True))),
        }
        spec = ClusterSpec(
            workers=2,
            threads_per_worker=1,
            nanny=False,
            dashboard_port=None,
            env=env,
            worker_env={1: {"XDG_RUNTIME_DIR": second}} if way.get("apart") else {},
        )
        with LocalProcesses(spec) as cluster, Client(cluster.address, set_as_default=False) as client:
            yield swarm.Swarm(client)


def measure(way: dict[str, object], requests: int, size: int) -> tuple[list[float], list[float]]:
    """Microseconds of each way there, and of each there and back, on a cluster of its own."""
    with two_workers(way) as connected:
        orchestrator = connected.orchestrator
        here, elsewhere = connected.client.scheduler_info(n_workers=-1)["workers"]
        isolation = way.get("isolation")
        orchestrator.create_agent(Asker, "asker", where=here, isolation=isolation)
        orchestrator.create_agent(Asker, "asked", where=here if way.get("same") else elsewhere, isolation=isolation)
        send = orchestrator.communicator.send_message
        if way.get("warm_up"):  # moves the channel into shared memory
            send("asker", "ask", ["asked", way["warm_up"], size], wait_for_answer=True, timeout=60)
            send("asker", "pause", 3.0, wait_for_answer=True, timeout=60)
        there, there_and_back = send("asker", "ask", ["asked", requests, size], wait_for_answer=True, timeout=120)
        transports = {
            link["transport"]
            for place in orchestrator.get_system_status()["places"]
            for link in (place.get("channels") or {}).get("links", ())
        }
        Console().print(f"[dim]{transports or 'no channels'}[/]")
        return there, there_and_back


@click.command()
@click.option("--requests", default=2000, show_default=True)
@click.option("--size", default=256, show_default=True, help="Bytes of the payload.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these.")
@click.option("--json", "to", type=click.Path(path_type=Path))
def main(requests: int, size: int, rounds: int, ways: tuple[str, ...], to: Path | None) -> None:
    """Print p50 and p99 of each way, one way and there and back: the median of the rounds and their range."""
    results: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name in ways or WAYS:
            found = results.setdefault(name, {figure: [] for figure in FIGURES})
            for hops, times in zip(("there", "back"), measure(WAYS[name], requests, size), strict=True):
                cuts = statistics.quantiles(times, n=100)
                found[f"{hops}_p50_us"].append(cuts[49])
                found[f"{hops}_p99_us"].append(cuts[98])
    columns = ("there p50 µs", "p99 µs", "and back p50 µs", "p99 µs")
    table = Table("way", *columns, title=f"Requests of agents, {size} B, {rounds} × {requests}")
    for name, found in results.items():
        table.add_row(name, *(f"{statistics.median(v):.0f} ({min(v):.0f}–{max(v):.0f})" for v in found.values()))
    Console().print(table)
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps({"cores": os.cpu_count(), "load": psutil.getloadavg()[0], "ways": results}, indent=1))


if __name__ == "__main__":
    main()
