"""What 32 idle agents cost on one host, beside the same workers without them; and how long a crash takes to mend.

python -m tests.benchmarks.agents.idle --seconds 10 --rounds 3
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

import swarm
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from swarm.errors import AgentError
from tests.support.askers import Asker, Idler

AGENTS = 32
WORKERS = 2


def used(processes: list[psutil.Process]) -> tuple[float, int]:
    """CPU seconds so far, and bytes (each page of shared memory shared out)."""
    return sum(map(cpu_s, processes)), sum(process.memory_full_info().pss for process in processes)


def cpu_s(process: psutil.Process) -> float:
    """Of all its threads, in nanoseconds: /proc/PID/stat has steps of 10 ms, and an idle agent takes 2 ms in ten s."""
    threads = Path(f"/proc/{process.pid}/task")
    if not (threads / str(process.pid) / "schedstat").exists():
        return float(sum(process.cpu_times()[:2]))
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads.iterdir()) / 1e9


def all_of(cluster: LocalProcesses) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in cluster.processes.values()]
    return [each for root in roots for each in (root, *root.children(recursive=True))]


def idle(isolation: str, seconds: float, rounds: int) -> tuple[list[float], list[float]]:
    """Per cent of a core, and MB, beyond what the cluster takes without agents, in turn on one cluster."""
    env = {"DASK_SWARM__MAX_AGENTS": str(AGENTS)}
    spec = ClusterSpec(workers=WORKERS, threads_per_worker=1, nanny=False, dashboard_port=None, env=env)
    with LocalProcesses(spec) as cluster, swarm.connect(cluster.address) as connected:
        connected.orchestrator.create_agent(Idler, "first")
        connected.orchestrator.destroy_agent("first")
        time.sleep(8.0)  # what is loaded late, with the first agent too, is loaded
        shares, sizes = [], []
        for number in range(2 * rounds):
            for agent in (f"idler{i}" for i in range(AGENTS) if number):
                if number % 2:
                    connected.orchestrator.create_agent(Idler, agent, isolation=isolation)
                else:
                    connected.orchestrator.destroy_agent(agent)
            time.sleep(3.0)
            before_s, _ = used(all_of(cluster))
            time.sleep(seconds)
            after_s, size = used(all_of(cluster))
            shares.append(100.0 * (after_s - before_s) / seconds)
            sizes.append(size / 1e6)
    return _differences(shares), _differences(sizes)


def _differences(values: list[float]) -> list[float]:
    """With agents less without, of neighbours."""
    return [with_them - without for without, with_them in zip(values[::2], values[1::2], strict=True)]


def crash(times: int) -> list[float]:
    """Seconds from the SIGKILL of an agent's process to its first answer."""
    took_s = []
    spec = ClusterSpec(workers=1, threads_per_worker=1, nanny=False, dashboard_port=None)
    with LocalProcesses(spec) as cluster, swarm.connect(cluster.address) as connected:
        send = connected.orchestrator.communicator.send_message
        for number in range(times):
            agent = f"asker{number}"
            connected.orchestrator.create_agent(Asker, agent, isolation="process")
            pid = send(agent, "pid", wait_for_answer=True)
            os.kill(pid, signal.SIGKILL)
            began_s = time.perf_counter()
            while True:
                try:
                    if send(agent, "pid", wait_for_answer=True, timeout=5.0) != pid:
                        break
                except AgentError:
                    continue
            took_s.append(time.perf_counter() - began_s)
            connected.orchestrator.destroy_agent(agent)
    return took_s


@click.command()
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--crashes", default=10, show_default=True)
@click.option("--json", "to", type=click.Path(path_type=Path))
def main(seconds: float, rounds: int, crashes: int, to: Path | None) -> None:
    """Print both."""
    costs = {isolation: idle(isolation, seconds, rounds) for isolation in ("loop", "thread", "process")}
    took_s = crash(crashes)
    table = Table("isolation", "% of a core", "MB", title=f"{AGENTS} idle agents, {WORKERS} workers, {seconds:g} s")
    for isolation, both in costs.items():
        table.add_row(isolation, *(f"{statistics.median(v):.2f} ({min(v):.2f}–{max(v):.2f})" for v in both))
    Console().print(table)
    Console().print(
        f"killed → answers again: {statistics.median(took_s):.2f} s (at most {max(took_s):.2f} s of {crashes})"
    )
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps({"idle": costs, "crash_s": took_s}, indent=1))


if __name__ == "__main__":
    main()
